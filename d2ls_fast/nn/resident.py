"""The whole interaction in one kernel that holds the pixels on chip, for inference; see ``ops/interact.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from d2ls_fast.backends import current as current_backend
from d2ls_fast.ops.interact import Interacted, LookUpdate, Refinement, interact, why_not
from d2ls_fast.ops.interact_labels import interact_labels

if TYPE_CHECKING:
    from d2ls_fast.nn.classifier import PixelClassifier
    from d2ls_fast.nn.cross_attention import CrossAttention
    from d2ls_fast.nn.interaction import AlternatingCrossAttention, InteractionStage


def serves(interaction: AlternatingCrossAttention, pixels: Tensor, dictionary: Tensor) -> bool:
    """Whether the kernel does it: the back end cuda is asked for, no gradient is, and the batch fits the device.

    A batch that would go in waves is left to the passes: a wave mostly waits for its own meetings.
    """
    if current_backend() != "cuda" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    stages = _stages(interaction)
    alternating = stages[0].pixel_attention is not None
    if not alternating or dictionary.shape[0] != pixels.shape[0] or interaction.projects(pixels, dictionary):
        return False
    device, attention = pixels.device, interaction.looks[0]
    autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else pixels.dtype
    images, count, channels = pixels.shape
    sizes = (dictionary.shape[1], attention.num_heads, attention.q_proj.out_features, len(stages))
    return not why_not(device, dtype, images, count, channels, *sizes)


def run(interaction: AlternatingCrossAttention, pixels: Tensor, pixel_pe: Tensor, dictionary: Tensor) -> Interacted:
    """All stages, and the last look if there is one."""
    heads, eps = interaction.looks[0].num_heads, _stages(interaction)[0].dictionary_norm.eps
    return interact(pixels, pixel_pe, dictionary, *_parameters(interaction), heads, eps)


def labels(
    interaction: AlternatingCrossAttention,
    classifier: PixelClassifier,
    pixels: Tensor,
    pixel_pe: Tensor,
    dictionary: Tensor,
    grid: tuple[int, int],
    size: tuple[int, int],
    return_confidence: bool,
) -> tuple[Tensor, Tensor | None]:
    """What ``classifier.predict`` makes of :func:`run`'s results, whose pixels are never written."""
    heads, eps = interaction.looks[0].num_heads, _stages(interaction)[0].dictionary_norm.eps
    norm, (height, width) = classifier.norm, size
    layers = [parameter for layer in classifier.hypernetwork for parameter in layer.parameters()]  # weight, bias
    found, confidence = interact_labels(
        pixels, pixel_pe, dictionary, *_parameters(interaction), heads, layers, norm.weight, norm.bias, grid,
        return_confidence, classifier.prototypes, classifier.prototype_reduction, eps, norm.eps,
    )  # fmt: skip
    found = found[:, :height, :width].contiguous()
    return found, None if confidence is None else confidence[:, :height, :width].contiguous()


def _parameters(interaction: AlternatingCrossAttention) -> tuple[list[LookUpdate], list[Refinement]]:
    stages = _stages(interaction)
    norms = [stage.dictionary_norm for stage in stages]
    if interaction.final_norm is not None:
        norms.append(interaction.final_norm)
    looks = [LookUpdate(look.look(), look.update(norm)) for look, norm in zip(interaction.looks, norms, strict=True)]
    refinements = []
    for stage in stages:
        attention, norm = cast("CrossAttention", stage.pixel_attention), cast("nn.LayerNorm", stage.pixel_norm)
        refinements.append(Refinement(attention.entries(), attention.out_proj.bias, norm.weight, norm.bias))
    return looks, refinements


def _stages(interaction: AlternatingCrossAttention) -> list[InteractionStage]:
    return cast("list[InteractionStage]", list(interaction.layers))
