"""The two-way transformer in passes over the pixels is the one written attention by attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from d2ls_fast.backends import backend
from d2ls_fast.nn.cross_attention import CrossAttention
from d2ls_fast.nn.two_way import Look, TwoWayStage, two_way

CHANNELS, HEADS = 32, 4


class Block(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.self_attention = CrossAttention(CHANNELS, HEADS, 1)
        self.look, self.update = CrossAttention(CHANNELS, HEADS), CrossAttention(CHANNELS, HEADS)
        self.mlp = nn.Linear(CHANNELS, CHANNELS)
        self.norms = nn.ModuleList(nn.LayerNorm(CHANNELS, eps) for _ in range(4))

    def mix(self, tokens: Tensor, position: Tensor) -> Tensor:
        placed = (tokens + position).flatten(0, 1)
        mixed: Tensor = self.norms[0](
            tokens + self.self_attention(placed, placed, tokens.flatten(0, 1)).view_as(tokens)
        )
        return mixed

    def think(self, tokens: Tensor) -> Tensor:
        thought: Tensor = self.norms[2](tokens + self.mlp(tokens).relu())
        return thought

    def stage(self) -> TwoWayStage:
        return TwoWayStage(self.mix, Look(self.look, self.norms[1]), self.think, self.update, self.norms[3])


def definition(blocks: list[Block], last: Look, tokens: Tensor, pixels: Tensor, pe: Tensor) -> tuple[Tensor, Tensor]:
    """Everything for every token set on its own, SAM's order of operations."""
    position, shape = tokens.flatten(0, 1), tokens.shape
    sets = len(position) // len(pixels)
    pixels, tokens = pixels.repeat(sets, 1, 1), position
    pe = pe if pe.dim() == 2 else pe.repeat(sets, 1, 1)
    for block in blocks:
        tokens = block.mix(tokens.view(shape), position.view(shape)).flatten(0, 1)
        tokens = block.norms[1](tokens + block.look(tokens + position, pixels + pe, pixels))
        tokens = block.think(tokens)
        pixels = block.norms[3](pixels + block.update(pixels + pe, tokens + position, tokens))
    assert isinstance(last.attention, CrossAttention)
    tokens = last.norm(tokens + last.attention(tokens + position, pixels + pe, pixels))
    return tokens.view(shape), pixels


@pytest.mark.parametrize("tokens", [3, 30], ids=["folded", "projected"])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("back_end", ["auto", "torch"])
def test_passes_are_the_definition(back_end: str, images: int, tokens: int) -> None:
    torch.manual_seed(0)
    blocks = [Block(1e-6), Block(1e-3)]
    final, norm = CrossAttention(CHANNELS, HEADS), nn.LayerNorm(CHANNELS)
    parameters = [p for module in (*blocks, final, norm) for p in module.parameters()]
    for parameter in parameters:
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.5, 0.3)
    inputs = [torch.randn(3, images, tokens, CHANNELS), torch.randn(images, 11, CHANNELS), torch.randn(11, CHANNELS)]
    for each in inputs:
        each.requires_grad_()
    weights = torch.randn(3, images, tokens, CHANNELS), torch.randn(3 * images, 11, CHANNELS)

    def graded(outputs: tuple[Tensor, Tensor]) -> list[Tensor]:
        return [*outputs, *torch.autograd.grad(outputs, [*inputs, *parameters], weights)]

    expected = graded(definition(blocks, Look(final, norm), inputs[0], inputs[1], inputs[2]))
    with backend(back_end):
        stages = [block.stage() for block in blocks]
        found = graded(two_way(stages, Look(final, norm), inputs[0], inputs[1], inputs[2]))
    for got, wanted in zip(found, expected, strict=True):
        assert got.shape == wanted.shape
        # Both sides round; a bias of keys has no gradient but rounding.
        assert (got - wanted).norm() <= 2e-5 * wanted.norm() + 1e-4
