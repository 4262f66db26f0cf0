# make demo   train on the carried sample, evaluate, map a real scene: pictures and figures under demo/
# make test   lint, type check and all tests
# Both build .venv/ first; they need Python 3.11 or newer, a C++ compiler and the package registry.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := setup.py pyproject.toml constraints.txt $(shell find csrc -type f)

.PHONY: demo test lint format bench clean

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY) lint
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/d2ls-fast bench operator --output benchmarks/results/cpu-operator
	$(BIN)/d2ls-fast bench head --output benchmarks/results/cpu-head

$(READY): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt setuptools wheel ninja torch
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) build demo d2ls_fast.egg-info d2ls_fast/_C.so
