"""The Triton kernels of ``segmentation_loss``: right in the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
from interpreted import Report, assert_within, run_cases

from d2ls_fast.kernels import configs

CHILD = Path(__file__).with_name("segmentation_cases.py")
# The names of segmentation_cases.CASES, which this process must not import: it would switch Triton to its interpreter.
CASES = [
    "one pixel, one class",
    "fp32",
    "fp32, model width",
    "fp32, no weights, no smoothing",
    "fp32, class 0 ignored",
    "fp32, nothing labelled",
    "fp32, many classes",
    "fp32, prototypes",
    "fp32, largest prototype",
    "fp32, mean of prototypes",
    "fp32, many chunks",
    "fp32, extreme",
    "bf16",
    "fp16",
    "repeat",
    "dispatch",
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


@pytest.mark.parametrize(("classes", "prototypes"), [(1, 1), (7, 1), (150, 1), (16, 3), (5, 20)])
def test_one_block_holds_all_class_vectors(classes: int, prototypes: int) -> None:
    tile = configs.ClassifyTile(8, 16, 4, 1)
    blocks = configs.classify_blocks("segmentation_grad", tile, 256, classes, prototypes)
    assert blocks["BLOCK_K"] >= classes and blocks["PADDED"] >= prototypes
    assert blocks["BLOCK_N"] == max(1, 128 // (blocks["BLOCK_K"] * blocks["PADDED"]))
