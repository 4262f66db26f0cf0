"""The Triton kernels of ``classify``: right in the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interpreted import Report, assert_within, run_cases

from d2ls_fast.kernels import configs
from d2ls_fast.kernels.classify import Inputs, classify_logits

CHILD = Path(__file__).with_name("classify_cases.py")
# The names of classify_cases.CASES, which this process must not import: it would switch Triton to its interpreter.
CASES = [
    "one pixel, one class",
    "fp32",
    "fp32, model width",
    "fp32, blocks of classes",
    "fp32, many classes, three prototypes",
    "fp32, largest prototype",
    "fp32, mean of prototypes",
    "fp32, more prototypes than a block",
    "fp32, widest",
    "fp32, TF32 allowed",
    "fp32, many chunks",
    "fp32, views",
    "bf16",
    "bf16, model width",
    "bf16, blocks of classes, prototypes",
    "fp16",
    "fp16, blocks of classes",
    "repeat",
    "extreme",
    "ties",
    "many classes",
    "standing",
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
    kernels = configs.CLASSIFY_KERNELS + configs.SEGMENTATION_KERNELS
    expected = {(kernel, kind) for kernel in kernels for kind in configs.CLASSIFY_KINDS}
    for name, table in configs.ARCHITECTURES.items():
        assert set(table.classify) == expected, name


@pytest.mark.parametrize("classes", [1, 2, 7, 16, 19, 150])
@pytest.mark.parametrize("prototypes", [1, 3, 20])
def test_blocks_hold_whole_classes(classes: int, prototypes: int) -> None:
    for channels in (16, 96, 256, 1024):
        blocks = configs.classify_blocks(
            "classify_logits", configs.ClassifyTile(8, 16, 4, 1), channels, classes, prototypes
        )
        assert prototypes <= blocks["PADDED"] < 2 * prototypes and blocks["BLOCK_K"] >= 1
        assert blocks["BLOCK_K"] * blocks["PADDED"] >= 16
        assert 16 * blocks["U"] >= channels and blocks["BLOCK_N"] * blocks["U"] <= 8 * 16


def _inputs(channels: int, dtype: torch.dtype = torch.float32) -> Inputs:
    vector = torch.zeros(channels // 4)
    hyper = torch.zeros(1, 2, channels // 16)
    return Inputs(torch.zeros(1, 2, 2, channels, dtype=dtype), vector, vector, hyper, 1, "max", 1e-6)


def test_refuses_what_it_cannot_take() -> None:
    for channels in (24, 1040):
        with pytest.raises(ValueError, match="classify: channels must be a multiple of 16 from 16 to 1024"):
            classify_logits(_inputs(channels))
    with pytest.raises(TypeError, match="classify: pixels must be float32, bfloat16 or float16"):
        classify_logits(_inputs(32, torch.float64))
