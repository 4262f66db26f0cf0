"""The Triton kernels of ``dictionary_step``: right in the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interpreted import Report, assert_within, run_cases

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
def report() -> Report:
    return run_cases(CHILD)


def test_every_case_ran(report: Report) -> None:
    assert list(report) == CASES


@pytest.mark.parametrize("case", CASES)
def test_interpreted(report: Report, case: str) -> None:
    assert_within(report[case])


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
