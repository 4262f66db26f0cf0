"""The two-way transformer of SAM's mask decoder: few prompt tokens and many pixels, fused as D2LS' interaction is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from d2ls_fast.nn import projected
from d2ls_fast.nn.cross_attention import Projections
from d2ls_fast.nn.interaction import normalised_sum
from d2ls_fast.ops.attend import attend
from d2ls_fast.ops.dictionary_step import dictionary_step
from d2ls_fast.ops.refine_attend import refine_attend


class Look(NamedTuple):
    """tokens <- pixels: ``LN(tokens + Attn(tokens + position, pixels + pe, pixels))``."""

    attention: Projections
    norm: nn.LayerNorm


class TwoWayStage(NamedTuple):
    """A block; what concerns the tokens alone stays the model's own code."""

    mix: Callable[[Tensor, Tensor], Tensor]
    """(tokens, position) -> tokens: self-attention and its norm."""
    look: Look
    think: Callable[[Tensor], Tensor]
    """tokens -> tokens: MLP and its norm."""
    update: Projections
    """pixels <- tokens: ``LN(pixels + Attn(pixels + pe, tokens + position, tokens))``."""
    update_norm: nn.LayerNorm


def two_way(
    stages: Sequence[TwoWayStage], final: Look, tokens: Tensor, pixels: Tensor, pixel_pe: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Blocks of token self-attention, tokens <- pixels, MLP and pixels <- tokens; then a last tokens <- pixels.

    The tokens' positional term is the tokens as they come in. The next look at the pixels needs nothing of the pixels'
    update but its result, so both share one pass: L + 1 passes for L blocks. Where the prompts of an image come with
    their pixels unrepeated, the first pass reads them once for all prompts, whose tokens are then only more tokens.

    Args:
        stages: L >= 1 blocks.
        final: the last look.
        tokens: ``[..., T, C]`` with two leading dimensions whose product is G * B.
        pixels: ``[B, N, C]``, each image's shared by the token sets ``g * B + b``.
        pixel_pe: ``[N, C]``, or ``[B, N, C]`` if G is 1.

    Returns:
        tokens as they came in and pixels ``[G * B, N, C]``.

    Source: SAM (arXiv 2304.02643); the folding and the order of the passes are those of D2LS' interaction.
    """
    position, sets = tokens, tokens.shape[0] * tokens.shape[1]
    projecting = projected.pays(final.attention, pixels, tokens.shape[2])
    tokens = stages[0].mix(tokens, position)
    if projected.pays(final.attention, pixels, tokens.shape[2] * sets // pixels.shape[0]):
        tokens = _look_projected(stages[0].look, tokens, position, pixels, pixel_pe)
    else:
        query = _folded_query(stages[0].look.attention, tokens, position, pixels)
        tokens = _looked(stages[0].look, tokens, position, attend(pixels, pixel_pe, query)[0])
    for index, stage in enumerate(stages):
        tokens = stage.think(tokens)
        last = index + 1 == len(stages)
        ahead = tokens if last else stages[index + 1].mix(tokens, position)
        look = final if last else stages[index + 1].look
        attention, norm = stage.update, stage.update_norm
        if projecting:
            rows = (tokens + position).flatten(0, 1), tokens.flatten(0, 1)
            pixels = projected.update(attention, norm, pixels, pixel_pe, *rows)
            tokens = _look_projected(look, ahead, position, pixels, pixel_pe)
            continue
        step = dictionary_step(
            tokens.flatten(0, 1),
            position.flatten(0, 1),
            attention.num_heads,
            pixels.dtype,
            entries=attention.entries(),
        )
        pixels, context, _ = refine_attend(
            pixels,
            pixel_pe,
            step.key,
            step.key_bias,
            step.value,
            attention.out_proj.bias,
            norm.weight,
            norm.bias,
            _folded_query(look.attention, ahead, position, pixels),
            attention.num_heads,
            norm.eps,
        )
        tokens = _looked(look, ahead, position, context)
    return tokens, pixels


def _folded_query(attention: Projections, tokens: Tensor, position: Tensor, pixels: Tensor) -> Tensor:
    """The rows that ``attend`` takes for a look of the tokens at the pixels."""
    sets = tokens.flatten(0, 1), position.flatten(0, 1)
    return dictionary_step(*sets, attention.num_heads, pixels.dtype, look=attention.look()).query


def _looked(look: Look, tokens: Tensor, position: Tensor, context: Tensor) -> Tensor:
    """The tokens after a look that brought them ``context``."""
    attention, norm = look
    step = dictionary_step(
        tokens.flatten(0, 1),
        position.flatten(0, 1),
        attention.num_heads,
        context.dtype,
        context=context,
        update=attention.update(norm),
        eps=norm.eps,
    )
    return step.dictionary.view_as(tokens)


def _look_projected(look: Look, tokens: Tensor, position: Tensor, pixels: Tensor, pixel_pe: Tensor) -> Tensor:
    update = projected.look(look.attention, (tokens + position).flatten(0, 1), pixels, pixel_pe)
    return normalised_sum(look.norm, tokens, update.view_as(tokens).to(tokens.dtype))
