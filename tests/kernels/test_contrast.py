"""The Triton kernels of the contrastive losses: right in the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interpreted import Report, assert_within, run_cases

from d2ls_fast.kernels import configs, nce, ratio

CHILD = Path(__file__).with_name("contrast_cases.py")
# The names of contrast_cases.CASES, which this process must not import: it would switch Triton to its interpreter.
CASES = [
    "one pixel, one class",
    "fp32, pixels",
    "fp32, pixels, balanced",
    "fp32, dictionary",
    "fp32, both, an image without labels",
    "fp32, ignore_index a class",
    "fp32, prototypes",
    "fp32, blocks of entries",
    "fp32, blocks of entries, prototypes",
    "fp32, many chunks",
    "fp32, wide",
    "fp32, views",
    "fp32, sharp",
    "fp32, TF32 allowed",
    "bf16, pixels",
    "bf16, both",
    "bf16, blocks of entries",
    "fp16, both",
    "ratio",
    "repeat",
    "labels out of range",
]


@pytest.fixture(scope="module")
def report() -> Report:
    return run_cases(CHILD)


def test_every_case_ran(report: Report) -> None:
    assert list(report) == CASES


@pytest.mark.parametrize("case", CASES)
def test_interpreted(report: Report, case: str) -> None:
    assert_within(report[case])


def test_every_kernel_has_its_tiles() -> None:
    assert set(configs.NCE) == {(kernel, kind) for kernel in configs.NCE_KERNELS for kind in ("tf32", "ieee")}


def test_refuses_what_the_kernels_do_not_take() -> None:
    x, entries, target = torch.zeros(1, 4, 32), torch.zeros(1, 2, 32), torch.zeros(1, 4, dtype=torch.int64)
    options = (1, 255, True, True)
    with pytest.raises(TypeError, match="nce: pixels must be float32, bfloat16 or float16 and entries float32"):
        nce.nce_forward(x.double(), entries, target, *options)
    with pytest.raises(TypeError, match="entries float32"):
        nce.nce_forward(x.half(), entries.half(), target, *options)
    with pytest.raises(ValueError, match="nce: channels must be a multiple of 16"):
        nce.nce_forward(x[..., :24], entries[..., :24], target, *options)
    with pytest.raises(ValueError, match="nce: shapes do not match"):
        nce.nce_forward(x, entries, target[:, :3], *options)
    with pytest.raises(TypeError, match="ratio: dictionary must be float32"):
        ratio.ratio_forward(entries.half(), 1e-6)
