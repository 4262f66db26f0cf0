"""classify and classify_labels in plain PyTorch, and the backward formulas: what every kernel is compared with.

Pixels come as an image ``[B, h, w, C]``; the other arguments are those of :func:`d2ls_fast.ops.classify.classify`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Upper bound on the scores (entries x full-resolution pixels) that the definition of classify_labels holds at once:
# 16 MB in float32.
_CHUNK_SCORES = 4 * 1024 * 1024


def classify_definition(
    image: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    hyper: Tensor,
    prototypes: int,
    reduction: str,
    eps: float,
) -> Tensor:
    """The operator in plain PyTorch, pixels as ``[B, h, w, C]``: norm and activations in their dtype, scores wide."""
    scores = _reduced(_scores(image, norm_weight, norm_bias, hyper, eps), prototypes, reduction)
    return _to_image(scores, *image.shape[1:3])


def classify_labels_definition(
    image: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    hyper: Tensor,
    prototypes: int,
    reduction: str,
    eps: float,
    return_confidence: bool,
) -> tuple[Tensor, Tensor]:
    """Labels ``[B, 4h, 4w]`` and confidence (empty when not wanted), band of rows by band of rows."""
    labels, confidence = empty_labels(
        image, norm_weight, norm_bias, hyper, prototypes, reduction, eps, return_confidence
    )
    height, width = image.shape[1:3]
    rows = max(1, _CHUNK_SCORES // (16 * width * hyper.shape[1]))
    for b in range(image.shape[0]):
        for first in range(0, height, rows):
            band = image[b : b + 1, first : first + rows]
            scores = _scores(band, norm_weight, norm_bias, hyper[b : b + 1], eps)
            logits = _to_image(_reduced(scores, prototypes, reduction), *band.shape[1:3])[0]
            here = (b, slice(4 * first, 4 * (first + rows)))
            best = logits.argmax(0)
            labels[here] = best.to(labels.dtype)
            if return_confidence:
                top = logits.gather(0, best.unsqueeze(0))[0]
                confidence[here] = torch.exp(top - logits.logsumexp(0)).float()
    return labels, confidence


def empty_labels(image: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """What :func:`classify_labels_definition` returns of the same arguments, not filled in."""
    hyper, prototypes, return_confidence = arguments[2], arguments[3], arguments[-1]
    b, h, w, _ = image.shape
    dtype = torch.uint8 if hyper.shape[1] // prototypes <= 256 else torch.int16
    labels = image.new_empty((b, 4 * h, 4 * w), dtype=dtype)
    return labels, image.new_empty(labels.shape if return_confidence else (0,), dtype=torch.float32)


def _scores(image: Tensor, norm_weight: Tensor, norm_bias: Tensor, hyper: Tensor, eps: float) -> Tensor:
    """``[B, h, w, C]`` -> ``[B, N, 4, 4, K * P]``: the outer 2 x 2 block (first shuffle), then the inner one.

    PixelShuffle splits channel ``c * 4 + i * 2 + j`` into channel c of sub-pixel (i, j). Both shuffles stay inside
    a stride-4 pixel, so they are only views of its channels and no image-shaped tensor is formed.
    """
    outer = _split(image.flatten(1, 2)).to(norm_weight.dtype)
    outer = F.layer_norm(outer, outer.shape[-1:], norm_weight, norm_bias, eps).to(image.dtype)
    features = F.gelu(_split(F.gelu(outer)))  # [B, N, 4, 4, C/16]
    with torch.autocast(image.device.type, enabled=False):
        scores = features.to(hyper.dtype).flatten(1, 3) @ hyper.transpose(-1, -2)
    return scores.unflatten(1, (-1, 4, 4))


def _split(values: Tensor) -> Tensor:
    """``[..., C]`` -> ``[..., 4, C/4]``, the 2 x 2 block of a PixelShuffle(2)."""
    return values.unflatten(-1, (-1, 4)).transpose(-1, -2)


def _reduced(scores: Tensor, prototypes: int, reduction: str) -> Tensor:
    if prototypes == 1:
        return scores
    by_class = scores.unflatten(-1, (-1, prototypes))
    if reduction == "logsumexp":
        return by_class.logsumexp(-1)
    return by_class.amax(-1) if reduction == "max" else by_class.mean(-1)


def _to_image(scores: Tensor, h: int, w: int) -> Tensor:
    """``[B, h * w, 4, 4, K]`` -> ``[B, K, 4h, 4w]``; row = 4 y + 2 (outer i) + (inner i), columns likewise."""
    b, k = scores.shape[0], scores.shape[-1]
    blocks = scores.reshape(b, h, w, 2, 2, 2, 2, k)  # i1, j1, i2, j2
    return blocks.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(b, k, 4 * h, 4 * w)


def _from_image(image: Tensor) -> Tensor:
    """The way back from :func:`_to_image`."""
    b, k, height, width = image.shape
    blocks = image.reshape(b, k, height // 4, 2, 2, width // 4, 2, 2)  # i1, i2, then j1, j2
    return blocks.permute(0, 2, 5, 3, 6, 4, 7, 1).reshape(b, -1, 4, 4, k)


def plain_backward(
    image: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    hyper: Tensor,
    grad_logits: Tensor,
    prototypes: int,
    reduction: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The backward formulas in PyTorch, for machines without the compiled extension; recomputes the forward."""
    x = _split(image.flatten(1, 2)).to(norm_weight.dtype)
    outer, mean, inverse_sigma = torch.native_layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
    inner = _split(F.gelu(outer))
    features = F.gelu(inner)
    grad = _from_image(grad_logits)
    if prototypes > 1:
        grad = grad.unsqueeze(-1)
        scores = (features.flatten(1, 3) @ hyper.transpose(-1, -2)).unflatten(1, (-1, 4, 4))
        by_class = scores.unflatten(-1, (-1, prototypes))
        if reduction == "logsumexp":
            grad = grad * by_class.softmax(-1)
        elif reduction == "max":
            largest = (by_class == by_class.amax(-1, keepdim=True)).to(grad.dtype)
            grad = grad * largest / largest.sum(-1, keepdim=True)
        else:
            grad = grad.expand_as(by_class) / prototypes
        grad = grad.flatten(-2)
    grad = grad.flatten(1, 3)
    grad_hyper = grad.transpose(-1, -2) @ features.flatten(1, 3)
    grad = torch.ops.aten.gelu_backward((grad @ hyper).unflatten(1, (-1, 4, 4)), inner)
    grad = torch.ops.aten.gelu_backward(grad.transpose(-1, -2).flatten(-2), outer)
    grad, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
        grad, x, x.shape[-1:], mean, inverse_sigma, norm_weight, norm_bias, [True, True, True]
    )
    return grad.transpose(-1, -2).reshape(image.shape).to(image.dtype), grad_weight, grad_bias, grad_hyper
