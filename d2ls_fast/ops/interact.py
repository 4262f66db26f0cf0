"""interact: the whole interaction of dictionary and pixels as one operator, for inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from d2ls_fast import _extension
from d2ls_fast.backends import select
from d2ls_fast.ops import _cuda
from d2ls_fast.ops._folding import dictionary_step_definition
from d2ls_fast.ops._library import define, operator_of, with_autocast
from d2ls_fast.ops.attend import attend_definition, check_pixels
from d2ls_fast.ops.dictionary_step import Entries, Look, Update
from d2ls_fast.ops.refine import refine_definition


class LookUpdate(NamedTuple):
    """A look of the dictionary at the pixels, and what it makes of the dictionary."""

    look: Look
    update: Update


class Refinement(NamedTuple):
    """A look of the pixels at the dictionary, and what it makes of the pixels; the last three are ``[C]``."""

    entries: Entries
    out_bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor


class Interacted(NamedTuple):
    """The dictionary ``[B, K, C]``, the pixels ``[B, N, C]``, and the dictionary after each stage ``[L, B, K, C]``."""

    dictionary: Tensor
    pixels: Tensor
    stage_dictionaries: Tensor


def interact(
    pixels: Tensor,
    pixel_pe: Tensor,
    dictionary: Tensor,
    looks: Sequence[LookUpdate],
    refinements: Sequence[Refinement],
    num_heads: int,
    eps: float = 1e-5,
    keep_pixels: bool = True,
) -> Interacted:
    r"""All stages of the interaction, and a last look where ``looks`` has one more than ``refinements``.

    With P = D and for each stage

    .. math::
        D &\leftarrow \mathrm{LN}(D + \mathrm{Attn}(D + P, \; x + pe, \; x)) \\
        x &\leftarrow \mathrm{LN}(x + \mathrm{Attn}(x + pe, \; D + P, \; D))

    as :func:`dictionary_step`, :func:`attend` and :func:`refine` compute them. On a GPU one kernel does it all: the
    pixels stay in shared memory, are read once and written once. :func:`why_not` says whether an image fits.

    Args:
        pixels: x, ``[B, N, C]``, bfloat16 or float16 (kernel), float32 or float64 (plain PyTorch).
        pixel_pe: pe, ``[N, C]`` or ``[B, N, C]``; same dtype.
        dictionary: D, ``[B, K, C]``, any float dtype, as the parameters.
        looks: of the dictionary, L or L + 1.
        refinements: of the pixels, L >= 1.
        num_heads: H.
        eps: of all norms.
        keep_pixels: False leaves out the pixels, which are then empty.

    Returns:
        the dictionaries in the dtype of ``dictionary`` and the pixels in theirs. Between the stages the dictionary is
        float32 (float64 for float64 pixels).

    Raises:
        ValueError: shapes or counts do not fit, or a gradient is wanted: this operator has none.
        BackendError: a forced back end cannot serve the call.
        RuntimeError: the CUDA kernel is forced and does not take the image; the message says why.

    Bitwise repeatable. Source: the D2LS interaction (arXiv 2503.06683).
    """
    arguments = checked("interact", pixels, pixel_pe, dictionary, looks, refinements)
    name = select("interact", arguments[0], dictionary.shape[1])
    operator = interact_definition if name in ("reference", "torch") else operator_of("interact", name)
    last, refined, stages = operator(*arguments, num_heads, eps, keep_pixels)
    return Interacted(last.to(dictionary.dtype), refined, stages.to(dictionary.dtype))


def checked(
    operator: str,
    pixels: Tensor,
    pixel_pe: Tensor,
    dictionary: Tensor,
    looks: Sequence[LookUpdate],
    refinements: Sequence[Refinement],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """The tensors as the operators take them, ten a look and ten a refinement; raises as :func:`interact`."""
    pixels, pixel_pe = with_autocast((pixels, pixel_pe))
    check_pixels(operator, pixels, pixel_pe)
    if dictionary.dim() != 3 or dictionary.shape[0] != pixels.shape[0] or dictionary.shape[2] != pixels.shape[2]:
        expected = f"[{pixels.shape[0]}, K, {pixels.shape[2]}]"
        raise ValueError(f"{operator}: dictionary must be {expected} for these pixels, got {tuple(dictionary.shape)}")
    if not refinements or len(looks) - len(refinements) not in (0, 1):
        counts = f"{len(looks)} and {len(refinements)}"
        raise ValueError(f"{operator}: there must be as many looks as refinements, or one more, got {counts}")
    wide = torch.promote_types(pixels.dtype, torch.float32)
    of_looks = [parameter.to(wide) for each in looks for part in each for parameter in part]
    of_refinements = [parameter.to(wide) for each in refinements for parameter in (*each.entries, *each[1:])]
    leaves = (pixels, pixel_pe, dictionary, *of_looks, *of_refinements)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in leaves):
        raise ValueError(f"{operator}: there is no gradient; call it under torch.no_grad(), or train with the passes")
    return pixels, pixel_pe, dictionary.to(wide), of_looks, of_refinements


def why_not(
    device: torch.device, dtype: torch.dtype, images: int, pixels: int, channels: int, entries: int, num_heads: int,
    inner: int, stages: int,
) -> str:  # fmt: skip
    """Why the CUDA kernel on ``device`` cannot hold so many images of ``pixels`` pixels at once, or nothing.

    ``inner`` is the width of the attention (all heads), ``entries`` K. If it can hold one, a batch of any size goes in
    waves.
    """
    if device.type != "cuda":
        return f"the resident kernel works on cuda, not on {device.type}"
    if not _extension.CUDA_LOADED:
        return _extension.WHY_NOT_CUDA
    index = torch.cuda.current_device() if device.index is None else device.index
    sizes = (images, pixels, channels, entries, num_heads, inner, stages)
    reason: str = torch.ops.d2ls_fast.cuda_why_not_interact(index, *sizes, dtype)
    return reason


def interact_definition(
    pixels: Tensor,
    pixel_pe: Tensor,
    dictionary: Tensor,
    looks: list[Tensor],
    refinements: list[Tensor],
    num_heads: int,
    eps: float,
    keep_pixels: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator in plain PyTorch: pass after pass, each by its definition.

    ``looks`` has ten tensors a look (of Look and Update), ``refinements`` ten a stage (of Entries, and the rest).
    """
    position, after = dictionary, []
    common = (num_heads, eps, pixels.dtype)
    of_look, of_stage = _by_tens(looks), _by_tens(refinements)
    _, query, *_ = dictionary_step_definition(dictionary, position, None, [], [], of_look[0][:4], *common)
    for number, stage in enumerate(of_stage):
        context, _ = attend_definition(pixels, pixel_pe, query)
        following = of_look[number + 1][:4] if number + 1 < len(of_look) else []
        dictionary, query, key, key_bias, value = dictionary_step_definition(
            dictionary, position, context, of_look[number][4:], stage[:7], following, *common
        )
        after.append(dictionary)
        out_bias, norm_weight, norm_bias = stage[7:]
        pixels = refine_definition(
            pixels, pixel_pe, key, key_bias, value, out_bias, norm_weight, norm_bias, num_heads, eps
        )
    if len(of_look) > len(of_stage):
        context, _ = attend_definition(pixels, pixel_pe, query)
        dictionary, *_ = dictionary_step_definition(dictionary, position, context, of_look[-1][4:], [], [], *common)
    return dictionary.clone(), pixels if keep_pixels else pixels.new_empty((0,)), torch.stack(after)


def _by_tens(tensors: list[Tensor]) -> list[list[Tensor]]:
    return [tensors[first : first + 10] for first in range(0, len(tensors), 10)]


# --- registration -------------------------------------------------------------------------------------------------

_SCHEMA = (
    "(Tensor pixels, Tensor pixel_pe, Tensor dictionary, Tensor[] looks, Tensor[] refinements, int num_heads,"
    " float eps, bool keep_pixels) -> (Tensor, Tensor, Tensor)"
)


def _fake(
    pixels: Tensor, pixel_pe: Tensor, dictionary: Tensor, looks: list[Tensor], refinements: list[Tensor], *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    stages = dictionary.new_empty((len(refinements) // 10, *dictionary.shape))
    refined = pixels.new_empty(pixels.shape if options[-1] else (0,))
    return dictionary.new_empty(dictionary.shape), refined, stages


define("interact", _SCHEMA, fake=_fake, cpu=interact_definition, cuda=interact_definition)
define("interact_cuda", _SCHEMA, fake=_fake, cpu=None, cuda=_cuda.interact)
