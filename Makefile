# make demo   train on the carried sample, evaluate, map a real scene: pictures and figures under demo/
# make test   lint, type check and all tests
# make bench   time everything against its baselines and renew benchmarks/results/ (about an hour on two cores)
# make resources   compile every Triton configuration that changed, for every GPU, and renew the table of what it takes
# make resources-cuda   compile the CUDA kernels for every GPU and renew the table of what they take (needs nvcc)
# make gpu   on a machine with a GPU: build, test, measure against the aims, sanitize, read counters (docs/gpu.md)
# make sanitize   the C++ kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer (g++ on Linux)
# make other-torch TORCH=2.13.0   the built extension, not rebuilt, under another torch
# Both build .venv/ first; they need Python 3.11 or newer, a C++ compiler and the package registry.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := setup.py pyproject.toml constraints.txt $(shell find csrc -type f)

.PHONY: demo test lint format bench resources resources-cuda gpu sanitize other-torch clean

demo: $(READY)
	$(BIN)/python examples/demo.py

# Files side by side in several processes, whose threads must not spin while they wait for each other's cores.
test: $(READY) lint
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

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
	$(BIN)/d2ls-fast bench head --precision bf16 --output benchmarks/results/cpu-head-bf16
	$(BIN)/d2ls-fast bench model --output benchmarks/results/cpu-model
	$(BIN)/d2ls-fast bench train --output benchmarks/results/cpu-train
	$(BIN)/d2ls-fast bench patch --output benchmarks/results/cpu-patch
	$(BIN)/d2ls-fast bench sam --size 1024 --batch 1 --batch 16 --batch 64 --only transformer --repeats 3 --output benchmarks/results/cpu-sam
	mkdir -p build && $(BIN)/rio merge --overwrite examples/sample/landsat8-cloud/images/*.tif build/landsat8.tif
	$(BIN)/python examples/demo.py
	$(BIN)/d2ls-fast bench map demo/run/best.safetensors build/landsat8.tif --repeats 7 --output benchmarks/results/cpu-map
	$(BIN)/d2ls-fast bench data configs/demo.yaml workers=1 --repeats 30 --output benchmarks/results/cpu-data

# Needs no GPU. Fails where a configuration does not fit or a hot one spills.
resources: $(READY)
	$(BIN)/python -m d2ls_fast.benchmarks.triton_resources

# About a minute on two cores; CUDA_HOME names the toolkit where PATH does not. Fails where a hot kernel spills.
resources-cuda: $(READY)
	$(BIN)/python -m d2ls_fast.benchmarks.cuda_resources

# Makes no environment: the PyTorch that sees the GPU is there already, and a network may not be. STEPS="build bench" selects.
gpu:
	bash benchmarks/gpu.sh

# A build of its own, tried with every instruction set this processor has. What is compiled by torch or run by Triton is
# not ours to sanitize; leaks are Python's. Python itself is not instrumented, so the runtime comes first by LD_PRELOAD.
sanitize: $(READY)
	D2LS_FAST_SANITIZE=1 D2LS_FAST_CUDA=0 $(BIN)/python setup.py -q build --build-base build/sanitize --build-lib build/sanitize/lib
	for isa in portable avx2 avx512 best; do \
	  echo "instruction set: $$isa"; \
	  D2LS_FAST_ISA=$$isa ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	  PYTHONPATH=build/sanitize/lib $(BIN)/pytest --capture=sys tests/ops tests/models/test_golden.py -n auto --maxprocesses 4 -k "not compile and not triton and not fifty and not instruction and not 16384" || exit 1; \
	done

# The wheel is compiled against this environment's torch and installed beside another one. Only PyTorch and what the layers
# need is there: no timm, torchvision or lightning. Left out: the one test of a whole model, and the one whose second
# process would import the sources here instead of the wheel.
TORCH ?= 2.13.0
OTHER := build/torch-$(TORCH)
other-torch: $(READY)
	rm -rf build/wheel && $(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	test -x $(OTHER)/bin/python || $(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/pip install --quiet torch==$(TORCH) triton numpy setuptools pydantic pyyaml rich safetensors pytest pytest-benchmark
	$(OTHER)/bin/pip install --quiet --no-deps --force-reinstall build/wheel/*.whl
	$(OTHER)/bin/python -P -m d2ls_fast.info
	PYTHONSAFEPATH=1 $(OTHER)/bin/pytest tests/ops tests/nn -k "not for_training and not two_processes"

$(READY): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt setuptools wheel ninja torch
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) build demo d2ls_fast.egg-info d2ls_fast/_C.so
