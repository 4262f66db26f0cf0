"""The alternating interaction: the dictionary looks at the pixels, the pixels look at the dictionary, L times."""

from __future__ import annotations

from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from d2ls_fast.backends import current as current_backend
from d2ls_fast.nn import projected, resident
from d2ls_fast.nn.cross_attention import CrossAttention
from d2ls_fast.ops.attend import attend
from d2ls_fast.ops.dictionary_step import Step, dictionary_step
from d2ls_fast.ops.refine import refine, repeated
from d2ls_fast.ops.refine_attend import refine_attend

Form = Literal["auto", "folded", "projected"]


class Interaction(NamedTuple):
    """What the interaction leaves: dictionaries ``[G * B, K, C]``, pixels ``[G * B, N, C]``, and both by stage.

    The pixels by stage are there only where they were asked for.
    """

    dictionary: Tensor
    pixels: Tensor
    stage_dictionaries: list[Tensor]
    stage_pixels: list[Tensor]


class InteractionStage(nn.Module):
    """One stage: dictionary <- pixels, then (alternating) pixels <- dictionary; post-norm, LayerNorm eps 1e-5."""

    def __init__(self, embed_dim: int, num_heads: int, downsample_rate: int, alternating: bool) -> None:
        super().__init__()
        self.dictionary_attention = CrossAttention(embed_dim, num_heads, downsample_rate)
        self.dictionary_norm = nn.LayerNorm(embed_dim)
        self.pixel_attention = CrossAttention(embed_dim, num_heads, downsample_rate) if alternating else None
        self.pixel_norm = nn.LayerNorm(embed_dim) if alternating else None

    def forward(self, pixels: Tensor, pixel_pe: Tensor, dictionary: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """The definition: the next ``(dictionary, pixels)``; ``position [B, K, C]`` is the dictionary's own term."""
        update = self.dictionary_attention(dictionary + position, pixels + pixel_pe, pixels)
        dictionary = normalised_sum(self.dictionary_norm, dictionary, update.to(dictionary.dtype))
        if self.pixel_attention is not None and self.pixel_norm is not None:
            update = self.pixel_attention(pixels + pixel_pe, dictionary + position, dictionary).to(pixels.dtype)
            pixels = self.pixel_norm(pixels + update).to(pixels.dtype)
        return dictionary, pixels

    def step(
        self,
        dictionary: Tensor,
        position: Tensor,
        context: Tensor,
        following: CrossAttention | None,
        dtype: torch.dtype,
    ) -> Step:
        """This stage's dictionary from attend's context, and the rows of the next pass, whose look is ``following``."""
        return dictionary_step(
            dictionary,
            position,
            self.dictionary_attention.num_heads,
            dtype,
            context=context,
            update=self.dictionary_attention.update(self.dictionary_norm),
            entries=None if self.pixel_attention is None else self.pixel_attention.entries(),
            look=None if following is None else following.look(),
            eps=self.dictionary_norm.eps,
        )

    def one_pass(self, pixels: Tensor, pixel_pe: Tensor, step: Step, looking: bool) -> tuple[Tensor, Tensor]:
        """This stage's pixel update and the next look of ``step.query`` at its result, in one pass over the pixels.

        Returns the pixels and attend's context, which is empty when nobody looks any more.
        """
        nothing = pixels.new_empty(0)
        if self.pixel_attention is None or self.pixel_norm is None:
            return pixels, attend(pixels, pixel_pe, step.query)[0] if looking else nothing
        attention, norm = self.pixel_attention, self.pixel_norm
        rows = (step.key, step.key_bias, step.value, attention.out_proj.bias, norm.weight, norm.bias)
        if not looking:
            return refine(pixels, pixel_pe, *rows, attention.num_heads, norm.eps), nothing
        pixels, context, _ = refine_attend(pixels, pixel_pe, *rows, step.query, attention.num_heads, norm.eps)
        return pixels, context


class AlternatingCrossAttention(nn.Module):
    r"""The interaction of D2LS: L stages and a last look of the dictionary at the pixels.

    With P = D_0 and for l = 1..L:

    .. math::
        D &\leftarrow \mathrm{LN}(D + \mathrm{Attn}(D + P, \; x + pe, \; x)) \\
        x &\leftarrow \mathrm{LN}(x + \mathrm{Attn}(x + pe, \; D + P, \; D))

    then once more the first line (``final_attention``).

    Args:
        embed_dim: C.
        num_heads: H; must divide ``C / downsample_rate``.
        stages: L >= 1.
        downsample_rate: factor by which attention is narrower than C.
        alternating: False leaves the pixels as they are (only the dictionary is updated).
        final_attention: False leaves out the last look.
        form: ``folded`` moves the projections of the pixels onto the dictionary, ``projected`` projects the pixels tile
            by tile, which is cheaper for many entries; ``auto`` takes the cheaper one. The result is the same.

    Source: D2LS (arXiv 2503.06683).
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        stages: int = 3,
        downsample_rate: int = 2,
        alternating: bool = True,
        final_attention: bool = True,
        form: Form = "auto",
    ) -> None:
        super().__init__()
        if stages < 1:
            raise ValueError(f"stages must be at least 1, got {stages}")
        if form not in get_args(Form):
            raise ValueError(f"form must be one of {', '.join(get_args(Form))}, got {form!r}")
        self.form = form
        self.layers = nn.ModuleList(
            InteractionStage(embed_dim, num_heads, downsample_rate, alternating) for _ in range(stages)
        )
        self.final_attention = CrossAttention(embed_dim, num_heads, downsample_rate) if final_attention else None
        self.final_norm = nn.LayerNorm(embed_dim) if final_attention else None

    def forward(self, pixels: Tensor, pixel_pe: Tensor, dictionary: Tensor) -> tuple[Tensor, Tensor]:
        """Run all stages.

        Args:
            pixels: ``[B, N, C]``, pixel-major.
            pixel_pe: positional encoding, ``[N, C]`` or ``[B, N, C]``.
            dictionary: D_0, ``[G * B, K, C]``. G >= 1 dictionaries start from the same pixels, read once for all of
                them; dictionary ``g * B + b`` belongs to image b, so ``torch.cat`` stacks them.

        Returns:
            ``dictionary [G * B, K, C]`` and ``pixels [G * B, N, C]``, each in its input's dtype.

        Raises:
            ValueError: the dictionary's batch is no multiple of the pixels'.
        """
        result = self.run(pixels, pixel_pe, dictionary)
        return result.dictionary, result.pixels

    def run(self, pixels: Tensor, pixel_pe: Tensor, dictionary: Tensor, keep_pixels: bool = False) -> Interaction:
        """As :meth:`forward`, and the dictionary after each stage (before the last look) as well.

        ``keep_pixels`` also keeps the pixels after each stage.
        """
        if dictionary.shape[0] == 0 or dictionary.shape[0] % pixels.shape[0]:
            expected = f"[G * {pixels.shape[0]}, K, {pixels.shape[2]}]"
            raise ValueError(f"dictionary must be {expected} for these pixels, got {tuple(dictionary.shape)}")
        pixel_pe = pixel_pe.to(pixels.dtype)
        reference = current_backend() == "reference"
        if reference or pixel_pe.dim() == 3:
            # An encoding of every image's own has to meet the pixels of every dictionary after the first update.
            pixels, pixel_pe = repeated(pixels, dictionary), repeated(pixel_pe, dictionary)
        result = (self._run_definition if reference else self._run_passes)(pixels, pixel_pe, dictionary, keep_pixels)
        kept = [repeated(each, dictionary) for each in result.stage_pixels]
        return Interaction(result.dictionary, repeated(result.pixels, dictionary), result.stage_dictionaries, kept)

    @property
    def looks(self) -> list[CrossAttention]:
        """The attentions by which the dictionary looks at the pixels, in their order: L, and the last look if any."""
        looks = [cast("InteractionStage", stage).dictionary_attention for stage in self.layers]
        return looks if self.final_attention is None else [*looks, self.final_attention]

    def rows(self, number: int, dictionary: Tensor, position: Tensor, dtype: torch.dtype) -> Step:
        """The rows that meet the pixels once ``number`` looks have made ``dictionary`` of D_0 (``position``).

        Those of stage ``number``'s pixel update, counted from 1, and of the next look; each only if there is one.
        """
        refining = cast("InteractionStage", self.layers[number - 1]).pixel_attention if number else None
        return dictionary_step(
            dictionary,
            position,
            self.looks[0].num_heads,
            dtype,
            entries=None if refining is None else refining.entries(),
            look=self.looks[number].look() if number < len(self.looks) else None,
        )

    def look(self, number: int, dictionary: Tensor, position: Tensor, context: Tensor, dtype: torch.dtype) -> Tensor:
        """The dictionary after look ``number``, counted from 0, whose context attend gave."""
        last = number == len(self.layers)
        norm = self.final_norm if last else cast("InteractionStage", self.layers[number]).dictionary_norm
        attention = self.looks[number]
        step = dictionary_step(
            dictionary,
            position,
            attention.num_heads,
            dtype,
            context=context,
            update=attention.update(cast("nn.LayerNorm", norm)),
            eps=cast("nn.LayerNorm", norm).eps,
        )
        return step.dictionary

    def _run_definition(self, pixels: Tensor, pixel_pe: Tensor, dictionary: Tensor, keep_pixels: bool) -> Interaction:
        position, after, kept = dictionary, [], []
        for layer in self.layers:
            dictionary, pixels = layer(pixels, pixel_pe, dictionary, position)
            after.append(dictionary)
            if keep_pixels:
                kept.append(pixels)
        if self.final_attention is not None and self.final_norm is not None:
            update = self.final_attention(dictionary + position, pixels + pixel_pe, pixels)
            dictionary = normalised_sum(self.final_norm, dictionary, update.to(dictionary.dtype))
        return Interaction(dictionary, pixels, after, kept)

    def _run_passes(self, pixels: Tensor, pixel_pe: Tensor, dictionary: Tensor, keep_pixels: bool) -> Interaction:
        """The same in L + 1 passes over the pixels, or in one kernel where :func:`resident.serves` says so.

        Stage l's pixel update needs D_l, and stage l + 1's look at the pixels needs only D_l: one pass does both.
        """
        if self.projects(pixels, dictionary):
            return self._run_projected(pixels, pixel_pe, dictionary, keep_pixels)
        if not keep_pixels and resident.serves(self, pixels, dictionary):
            whole = resident.run(self, pixels, pixel_pe, dictionary)
            return Interaction(whole.dictionary, whole.pixels, list(whole.stage_dictionaries), [])
        position, after, kept = dictionary, [], []
        stages = cast("list[InteractionStage]", list(self.layers))
        looks = [stage.dictionary_attention for stage in stages]
        following: list[CrossAttention | None] = [*looks[1:], self.final_attention]
        context, _ = attend(pixels, pixel_pe, self.rows(0, dictionary, position, pixels.dtype).query)
        for stage, next_look in zip(stages, following, strict=True):
            step = stage.step(dictionary, position, context, next_look, pixels.dtype)
            dictionary = step.dictionary
            after.append(dictionary)
            pixels, context = stage.one_pass(pixels, pixel_pe, step, next_look is not None)
            if keep_pixels:
                kept.append(pixels)
        if self.final_attention is not None:
            dictionary = self.look(len(stages), dictionary, position, context, pixels.dtype)
        return Interaction(dictionary, pixels, after, kept)

    def projects(self, pixels: Tensor, dictionary: Tensor) -> bool:
        """Whether the projected form is used for this many entries."""
        if self.form != "auto":
            return self.form == "projected"
        return projected.pays(
            cast("InteractionStage", self.layers[0]).dictionary_attention, pixels, dictionary.shape[1]
        )

    def _run_projected(self, pixels: Tensor, pixel_pe: Tensor, dictionary: Tensor, keep_pixels: bool) -> Interaction:
        """The same for many entries, in 2 L + 1 passes that project the pixels on the way."""
        position, after, kept = dictionary, [], []
        for stage in cast("list[InteractionStage]", list(self.layers)):
            update = projected.look(stage.dictionary_attention, dictionary + position, pixels, pixel_pe)
            dictionary = normalised_sum(stage.dictionary_norm, dictionary, update)
            after.append(dictionary)
            if stage.pixel_attention is not None and stage.pixel_norm is not None:
                entries = (dictionary + position, dictionary)
                pixels = projected.update(stage.pixel_attention, stage.pixel_norm, pixels, pixel_pe, *entries)
            if keep_pixels:
                kept.append(pixels)
        if self.final_attention is not None and self.final_norm is not None:
            update = projected.look(self.final_attention, dictionary + position, pixels, pixel_pe)
            dictionary = normalised_sum(self.final_norm, dictionary, update)
        return Interaction(dictionary, pixels, after, kept)


def normalised_sum(norm: nn.LayerNorm, tokens: Tensor, update: Tensor) -> Tensor:
    """``LN(tokens + update)`` in the tokens' own precision, under autocast too."""
    with torch.autocast(tokens.device.type, enabled=False):
        normalised: Tensor = norm(tokens + update)
        return normalised
