"""Positional encoding: the table form against the formula."""

from __future__ import annotations

import math

import pytest
import torch

from d2ls_fast.nn.position import RandomFourierPositions


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 3), (16, 24)])
def test_equals_the_formula(height: int, width: int) -> None:
    layer = RandomFourierPositions(8).double()
    rows, columns = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    u = torch.stack(((columns + 0.5) / width, (rows + 0.5) / height), dim=-1)
    angle = 2 * math.pi * (2 * u - 1) @ layer.frequencies
    wanted = torch.cat((angle.sin(), angle.cos()), dim=-1).flatten(0, 1)
    torch.testing.assert_close(layer(height, width), wanted, rtol=0, atol=1e-13)


def test_float32_is_as_exact_as_float32_allows() -> None:
    layer = RandomFourierPositions(64, scale=4.0)
    got = layer(33, 17)
    assert got.dtype is torch.float32
    wanted = RandomFourierPositions(64).double()
    wanted.frequencies.copy_(layer.frequencies)
    assert (got - wanted(33, 17)).abs().max() < 3e-7


def test_half_precision_model_keeps_float32_positions() -> None:
    assert RandomFourierPositions(8).bfloat16()(4, 4).dtype is torch.float32


@pytest.mark.parametrize("embed_dim", [0, 7])
def test_odd_width_is_refused(embed_dim: int) -> None:
    with pytest.raises(ValueError, match="embed_dim"):
        RandomFourierPositions(embed_dim)
