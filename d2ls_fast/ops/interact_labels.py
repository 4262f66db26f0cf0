"""interact_labels: the interaction and the classification of its pixels as one operator, for inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from d2ls_fast.backends import select
from d2ls_fast.ops import _cuda
from d2ls_fast.ops._classify import classify_labels_definition, empty_labels
from d2ls_fast.ops._library import define, operator_of
from d2ls_fast.ops.classify import PrototypeReduction, check_classify
from d2ls_fast.ops.interact import LookUpdate, Refinement, checked, interact_definition
from d2ls_fast.ops.refine import as_vectors


@torch.no_grad()
def interact_labels(
    pixels: Tensor,
    pixel_pe: Tensor,
    dictionary: Tensor,
    looks: Sequence[LookUpdate],
    refinements: Sequence[Refinement],
    num_heads: int,
    hypernetwork: Sequence[Tensor],
    norm_weight: Tensor,
    norm_bias: Tensor,
    grid: tuple[int, int],
    return_confidence: bool = False,
    prototypes: int = 1,
    reduction: PrototypeReduction = "logsumexp",
    eps: float = 1e-5,
    classifier_eps: float = 1e-6,
) -> tuple[Tensor, Tensor | None]:
    """The labels of the pixels that :func:`interact` would give; on a GPU these are never written.

    Args:
        hypernetwork: weight and bias of its three layers, ``[C, C]``, ``[C]``, ``[C, C]``, ``[C]``, ``[C / 16, C]``,
            ``[C / 16]``: from the last dictionary to the class vectors, ReLU after the first two.
        norm_weight, norm_bias: of the upsampler's norm, ``[C / 4]``, and ``classifier_eps`` its eps.
        grid: (h, w) with h * w = N.
        return_confidence: also the softmax probability of the label.
        prototypes: P; the dictionary has K * P entries, class-major, and ``reduction`` makes one score of P.
        pixels, pixel_pe, dictionary, looks, refinements, num_heads, eps: as for :func:`interact`, with one more look
            than refinements.

    Returns:
        labels ``[B, 4h, 4w]`` (uint8, int16 above 256 classes) and the confidence ``[B, 4h, 4w]`` float32, or None.

    Raises:
        ValueError, BackendError, RuntimeError: as :func:`interact` and
            :func:`~d2ls_fast.ops.classify.classify_labels`.
    """
    tensors = checked("interact_labels", pixels, pixel_pe, dictionary, looks, refinements)
    if len(looks) == len(refinements):
        raise ValueError("interact_labels: there must be one more look than refinements: classes are its dictionary's")
    c, wide = dictionary.shape[2], tensors[2].dtype
    layers = [parameter.to(wide) for parameter in hypernetwork]
    shapes = [(c, c), (c,), (c, c), (c,), (c // 16, c), (c // 16,)]
    if [tuple(layer.shape) for layer in layers] != shapes:
        found = [tuple(layer.shape) for layer in layers]
        raise ValueError(f"interact_labels: the layers of hypernetwork must be {shapes}, got {found}")
    vectors = tensors[2].new_empty((*dictionary.shape[:2], c // 16))  # what the layers will make
    norm_weight, norm_bias, vectors = as_vectors(tensors[0], norm_weight, norm_bias, vectors)
    check_classify("interact_labels", tensors[0], norm_weight, norm_bias, vectors, grid, prototypes, reduction)
    name = select("interact_labels", tensors[0], dictionary.shape[1])
    plain = name in ("reference", "torch")
    operator = interact_labels_definition if plain else operator_of("interact_labels", name)
    labels, confidence = operator(
        *tensors, num_heads, eps, layers, norm_weight, norm_bias, grid[0], grid[1], prototypes, reduction,
        classifier_eps, return_confidence,
    )  # fmt: skip
    return labels, confidence if return_confidence else None


def interact_labels_definition(
    pixels: Tensor,
    pixel_pe: Tensor,
    dictionary: Tensor,
    looks: list[Tensor],
    refinements: list[Tensor],
    num_heads: int,
    eps: float,
    hypernetwork: list[Tensor],
    norm_weight: Tensor,
    norm_bias: Tensor,
    height: int,
    width: int,
    prototypes: int,
    reduction: str,
    classifier_eps: float,
    return_confidence: bool,
) -> tuple[Tensor, Tensor]:
    """The operator in plain PyTorch: one definition after the other."""
    last, refined, _ = interact_definition(pixels, pixel_pe, dictionary, looks, refinements, num_heads, eps, True)
    first, second, third = zip(hypernetwork[::2], hypernetwork[1::2], strict=True)
    linear = torch.nn.functional.linear
    vectors = linear(linear(linear(last, *first).relu(), *second).relu(), *third)
    image = refined.unflatten(1, (height, width))
    options = (prototypes, reduction, classifier_eps, return_confidence)
    return classify_labels_definition(image, norm_weight, norm_bias, vectors, *options)


# --- registration -------------------------------------------------------------------------------------------------

_SCHEMA = (
    "(Tensor pixels, Tensor pixel_pe, Tensor dictionary, Tensor[] looks, Tensor[] refinements, int num_heads,"
    " float eps, Tensor[] hypernetwork, Tensor norm_weight, Tensor norm_bias, int height, int width, int prototypes,"
    " str reduction, float classifier_eps, bool return_confidence) -> (Tensor, Tensor)"
)


def _fake(pixels: Tensor, pixel_pe: Tensor, dictionary: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    _, _, _, _, hypernetwork, norm_weight, norm_bias, height, width, *options = arguments
    vectors = dictionary.new_empty((*dictionary.shape[:2], hypernetwork[-1].shape[0]))
    image = pixels.new_empty((pixels.shape[0], height, width, pixels.shape[2]))
    return empty_labels(image, norm_weight, norm_bias, vectors, *options)


_PLAIN = interact_labels_definition
define("interact_labels", _SCHEMA, fake=_fake, cpu=_PLAIN, cuda=_PLAIN)
define("interact_labels_cuda", _SCHEMA, fake=_fake, cpu=None, cuda=_cuda.interact_labels)
