"""The Triton kernels of ``fuse_pyramid``: right in the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interpreted import Report, assert_within, run_cases

from d2ls_fast.kernels import configs
from d2ls_fast.kernels.fuse_pyramid import fuse_pyramid_forward

CHILD = Path(__file__).with_name("pyramid_cases.py")
# The names of pyramid_cases.CASES, which this process must not import: it would switch Triton to its interpreter.
CASES = [
    "one pixel",
    "one level",
    "fp32",
    "fp32, channels last",
    "fp32, two launches",
    "fp32, larger coarse level",
    "bf16",
    "bf16, model width",
    "fp16",
    "repeat",
    "extreme",
]


@pytest.fixture(scope="module")
def report() -> Report:
    return run_cases(CHILD)


def test_every_case_ran(report: Report) -> None:
    assert list(report) == CASES


@pytest.mark.parametrize("case", CASES)
def test_interpreted(report: Report, case: str) -> None:
    assert_within(report[case])


def test_every_architecture_has_every_tile() -> None:
    for name, table in configs.ARCHITECTURES.items():
        assert set(table.pyramid) == {(k, kind) for k in configs.PYRAMID_KERNELS for kind in ("half", "ieee")}, name


def test_refuses_shapes_and_dtypes() -> None:
    maps, weights = [torch.zeros(1, 3, 4, 4), torch.zeros(1, 5, 2, 2)], [torch.zeros(16, 3), torch.zeros(16, 5)]
    bias = torch.zeros(16)
    with pytest.raises(ValueError, match="fuse_pyramid: shapes do not match"):
        fuse_pyramid_forward(maps, weights[::-1], bias)
    with pytest.raises(ValueError, match=r"fuse_pyramid: features must be \[B, c, h, w\]"):
        fuse_pyramid_forward([maps[0][0], maps[1]], weights, bias)
    with pytest.raises(TypeError, match="one dtype"):
        fuse_pyramid_forward(maps, [w.half() for w in weights], bias)
