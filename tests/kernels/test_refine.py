"""The Triton kernels of ``refine`` and ``refine_attend``: right in the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interpreted import Report, assert_within, run_cases
from torch import Tensor

from d2ls_fast.kernels import configs
from d2ls_fast.kernels.refine import Inputs, refine_forward

CHILD = Path(__file__).with_name("refine_cases.py")
# The names of refine_cases.CASES, which this process must not import: it would switch Triton to its interpreter.
CASES = [
    "refine, one pixel, one entry",
    "refine, fp32",
    "refine, fp32, encoding per image",
    "refine, fp32, model width",
    "refine, fp32, views",
    "refine, bf16",
    "refine, bf16, one block",
    "refine, bf16, many entries",
    "refine, bf16, wide",
    "refine, fp16",
    "refine, fp32, 65 entries",
    "refine, fp32, 150 entries",
    "refine, bf16, 150 entries",
    "refine, fp32, two dictionaries",
    "refine, fp32, three dictionaries, encoding per image",
    "refine, bf16, two dictionaries, one block",
    "refine_attend, one pixel",
    "refine_attend, fp32",
    "refine_attend, fp32, many queries",
    "refine_attend, fp32, fused",
    "refine_attend, fp32, fused, encoding per image",
    "refine_attend, fp32, fused, blocks of rows",
    "refine_attend, fp32, fused, no encoding gradient",
    "refine_attend, bf16",
    "refine_attend, bf16, fused",
    "refine_attend, fp16, fused",
    "refine_attend, fp32, 150 entries",
    "refine_attend, bf16, fused, 65 entries",
    "refine_attend, fp32, two dictionaries",
    "refine_attend, fp32, three dictionaries, encoding per image",
    "refine_attend, fp32, fused, three dictionaries",
    "refine_attend, bf16, fused, two dictionaries, encoding per image",
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
    expected = {(kernel, kind) for kernel in configs.REFINE_KERNELS for kind in configs.KINDS}
    allowed = {(kernel, kind) for kernel in configs.FUSED_KERNELS for kind in configs.KINDS}
    for name, table in configs.ARCHITECTURES.items():
        assert expected <= set(table.refine) <= expected | allowed, name


@pytest.mark.parametrize("entries", [1, 2, 7, 16, 19, 64, 65, 150])
@pytest.mark.parametrize("heads", [1, 2, 8])
def test_blocks_hold_whole_heads_or_a_part_of_one(entries: int, heads: int) -> None:
    for block_j in (16, 64):
        blocks = configs.refine_blocks(configs.RefineTile(block_j, 32, 8, 1), 96, heads, entries)
        assert 16 <= blocks["BLOCK_J"] <= block_j and blocks["BLOCK_C"] == 128
        larger, smaller = sorted((blocks["BLOCK_J"], blocks["PADDED"]), reverse=True)
        assert larger % smaller == 0
        assert entries <= blocks["PADDED"] < entries + max(entries, block_j)


def _inputs(entries: int, channels: int) -> list[Tensor]:
    rows, vector = torch.zeros(1, entries, channels), torch.zeros(channels)
    pe = torch.zeros(4, channels)
    return [torch.zeros(1, 4, channels), pe, rows, torch.zeros(1, entries), rows, vector, vector, vector]


def test_refuses_shapes() -> None:
    with pytest.raises(ValueError, match=r"refine: .*multiple of 16"):
        refine_forward(Inputs(*_inputs(3, 24)), 1, 1e-5)
    inputs = Inputs(*_inputs(3, 32))
    with pytest.raises(ValueError, match=r"refine: key must be \[G \* 2, J, C\]"):
        refine_forward(inputs._replace(pixels=inputs.pixels.repeat(2, 1, 1)), 1, 1e-5)


def test_refuses_mixed_dtypes() -> None:
    inputs = Inputs(*_inputs(3, 32))
    with pytest.raises(TypeError, match="one dtype"):
        refine_forward(inputs._replace(key=inputs.key.half()), 1, 1e-5)
