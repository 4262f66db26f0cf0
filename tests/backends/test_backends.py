"""Choosing a back end: automatic, forced, impossible."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch

import d2ls_fast as d2
from d2ls_fast import backends as list_backends
from d2ls_fast.backends import BackendError, current, select


def test_every_backend_is_listed_with_its_state() -> None:
    states = list_backends()
    assert list(states) == ["reference", "torch", "cpu", "triton", "cuda"]
    assert states["reference"] == states["torch"] == "available"
    assert all(states.values())


def test_automatic_choice_prefers_the_compiled_kernels() -> None:
    wanted = "cpu" if list_backends()["cpu"] == "available" else "torch"
    assert current() == "auto"
    assert select("attend", torch.empty(1)) == wanted
    assert select("attend", torch.empty(1, dtype=torch.float64)) == "torch"


def test_stepping_aside_is_logged_once_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="d2ls_fast"):
        for _ in range(2):
            select("attend_of_this_test", torch.empty(1))
    lines = [r.message for r in caplog.records if "attend_of_this_test" in r.message]
    assert len(lines) == 1 and "plain PyTorch" in lines[0]


def test_forced_backend_holds_inside_the_block_and_is_restored() -> None:
    with d2.backend("reference"):
        assert current() == "reference"
        with d2.backend("torch"):
            assert select("attend", torch.empty(1)) == "torch"
        assert current() == "reference"
    assert current() == "auto"
    with pytest.raises(ZeroDivisionError), d2.backend("torch"):
        raise ZeroDivisionError
    assert current() == "auto"


def test_forced_backend_never_falls_back() -> None:
    if list_backends()["cpu"] == "available":
        with d2.backend("cpu"), pytest.raises(BackendError, match="float64"):
            select("attend", torch.empty(1, dtype=torch.float64))
        with d2.backend("cpu"), pytest.raises(BackendError, match="meta"):
            select("attend", torch.empty(1, device="meta"))
    unavailable = [name for name, state in list_backends().items() if state != "available"]
    for name in unavailable:
        with pytest.raises(BackendError, match="not available"), d2.backend(name):
            raise AssertionError("entered")


def test_unknown_backend_names_the_choices() -> None:
    with pytest.raises(d2.UserError, match="choose one of auto, reference"), d2.backend("gpu"):
        raise AssertionError("entered")


@pytest.mark.parametrize(
    ("value", "expected"), [("torch", "torch"), ("nonsense", "D2LS_FAST_BACKEND: unknown back end")]
)
def test_environment_variable(value: str, expected: str) -> None:
    command = [sys.executable, "-c", "from d2ls_fast.backends import current; print(current())"]
    shown = subprocess.run(command, env={**os.environ, "D2LS_FAST_BACKEND": value}, capture_output=True, text=True)
    assert expected in shown.stdout + shown.stderr
