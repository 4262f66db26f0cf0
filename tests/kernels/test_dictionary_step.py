"""The Triton kernels of ``dictionary_step``: right in the interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2ls_fast.kernels.dictionary_step import dictionary_step_forward

CHILD = Path(__file__).with_name("step_cases.py")
# The names of step_cases.CASES, which this process must not import: it would switch Triton to its interpreter.
CASES = [
    "one entry",
    "fp32",
    "fp32, model width",
    "fp32, odd heads",
    "fp32, many entries",
    "fp32, widest",
    "look alone",
    "update alone",
    "no look",
    "no entries",
    "bf16",
    "fp16",
    "repeat",
]


@pytest.fixture(scope="module")
def report() -> dict[str, dict[str, list[float]]]:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    child = subprocess.run([sys.executable, str(CHILD)], capture_output=True, text=True, env=environment)
    assert child.returncode == 0, child.stderr[-4000:]
    result: dict[str, dict[str, list[float]]] = json.loads(child.stdout.splitlines()[-1])
    return result


def test_every_case_ran(report: dict[str, dict[str, list[float]]]) -> None:
    assert list(report) == CASES


@pytest.mark.parametrize("case", CASES)
def test_interpreted(report: dict[str, dict[str, list[float]]], case: str) -> None:
    for name, (error, allowed) in report[case].items():
        assert error <= allowed, f"{name}: error {error:.2e} exceeds {allowed:.2e}"


def _forward(channels: int, dtype: torch.dtype, rows_dtype: torch.dtype) -> None:
    tokens, weight, bias = torch.zeros(1, 2, channels), torch.zeros(16, channels), torch.zeros(16)
    look = [t.to(dtype) for t in (weight, bias, weight, bias)]
    dictionary_step_forward(tokens, tokens, None, [], [], look, 1, 1e-5, rows_dtype)


def test_refuses_what_it_cannot_take() -> None:
    with pytest.raises(ValueError, match="dictionary_step: channels must be at most 512, got 528"):
        _forward(528, torch.float32, torch.float32)
    for dtypes in ((torch.bfloat16, torch.float32), (torch.float32, torch.float64)):
        with pytest.raises(TypeError, match="dictionary_step: tensors must be float32"):
            _forward(32, *dtypes)
