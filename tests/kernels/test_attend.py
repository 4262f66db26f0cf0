"""The Triton kernels of ``attend``: right in the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interpreted import Report, assert_within, run_cases

from d2ls_fast.kernels import attend, configs

CHILD = Path(__file__).with_name("attend_cases.py")
# The names of attend_cases.CASES, which this process must not import: it would switch Triton to its interpreter.
CASES = [
    "one pixel, one row",
    "fp32",
    "fp32, encoding per image",
    "fp32, model width",
    "fp32, blocks of rows",
    "fp32, many chunks",
    "fp32, widest",
    "fp32, TF32 allowed",
    "fp32, views",
    "bf16",
    "bf16, encoding per image",
    "bf16, model width",
    "bf16, blocks of rows",
    "bf16, many chunks",
    "bf16, wide",
    "fp16",
    "fp16, model width",
    "fp16, blocks of rows",
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
    expected = {(kernel, kind) for kernel in configs.KERNELS for kind in configs.KINDS}
    for name, table in configs.ARCHITECTURES.items():
        assert set(table.tiles) == expected, name


@pytest.mark.parametrize("num_pixels", [1, 31, 32, 113, 1023, 16384, 2**31])
@pytest.mark.parametrize("groups", [1, 8, 1000])
def test_split_covers_the_pixels_with_no_empty_chunk(num_pixels: int, groups: int) -> None:
    chunks, tiles_per_chunk = configs.split(num_pixels, 32, groups, 264)
    assert (chunks - 1) * tiles_per_chunk * 32 < num_pixels <= chunks * tiles_per_chunk * 32
    assert 1 <= chunks <= max(1, 264 // groups)


@pytest.mark.parametrize(
    ("pixels", "pe", "query", "error"),
    [
        ((1, 4, 24), (4, 24), (1, 2, 24), ValueError),
        ((1, 4, 1040), (4, 1040), (1, 2, 1040), ValueError),
        ((1, 0, 32), (0, 32), (1, 2, 32), ValueError),
        ((2, 4, 32), (1, 4, 32), (2, 2, 32), ValueError),
        ((2, 4, 32), (4, 32), (1, 2, 32), ValueError),
    ],
)
def test_refuses_shapes(
    pixels: tuple[int, ...], pe: tuple[int, ...], query: tuple[int, ...], error: type[Exception]
) -> None:
    with pytest.raises(error, match="attend"):
        attend.attend_forward(torch.zeros(pixels), torch.zeros(pe), torch.zeros(query))


def test_refuses_mixed_dtypes() -> None:
    x, pe, q = torch.zeros(1, 4, 32), torch.zeros(4, 32), torch.zeros(1, 2, 32)
    with pytest.raises(TypeError, match="one dtype"):
        attend.attend_forward(x.half(), pe, q)
    with pytest.raises(TypeError, match="one dtype"):
        attend.attend_forward(x.double(), pe.double(), q.double())
