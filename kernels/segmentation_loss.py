"""``segmentation_sums`` in Triton: the sums of cross-entropy and dice from pixels, class vectors and labels.

The tiles of ``classify``; the logits of a tile's sub-pixels are turned into a softmax on chip and only few sums leave
a program. With p the softmax, y the label, w the class weights, e the smoothing and sums over the labelled pixels::

    cross_entropy = sum_n (1 - e) w_y (-log p_y) + e/K sum_k w_k (-log p_k)
    overlap_k = sum over pixels of class k of p_k    volume_k = sum_n p_k    count_k = pixels of class k

Backward recomputes the softmax; with g, o, v the gradients of cross_entropy, overlap and volume, and d = v + o at y::

    dlogit_k = g ((1 - e) w_y (p_k - [k = y]) + e/K (p_k sum_j w_j - w_k)) + p_k (d_k - sum_j p_j d_j)

and on as in the backward of classify. Per-chunk partial results are added up in a fixed order, without atomics:
results repeat bit for bit. Pixels are counted in integers.

All K * P scores of a sub-pixel are on chip at once, hence at most 256 class vectors (see ``why_not``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import classify
from ._launch import on_device, sum_partials
from ._segmentation_backward import segmentation_grad
from ._segmentation_forward import segmentation_sums

MAX_VECTORS = 256


class Labels(NamedTuple):
    """What the labels are and how they count: target int64 [B, H, W], at most (4h, 4w); class_weights [K]."""

    target: Tensor
    class_weights: Tensor | None
    smoothing: float
    ignore_index: int


def why_not(pixels: Tensor, hyper: Tensor) -> str:
    """Why the kernels cannot take these shapes, or nothing."""
    if hyper.shape[1] > MAX_VECTORS:
        return f"at most {MAX_VECTORS} class vectors, got {hyper.shape[1]}"
    return classify.why_not(pixels)


def _prepared(inputs: classify.Inputs) -> classify.Inputs:
    problem = why_not(inputs.pixels, inputs.hyper)
    if problem:
        raise ValueError(f"segmentation_loss: {problem}")
    return classify.prepared("segmentation_loss", inputs)


def _weights(inputs: classify.Inputs, labels: Labels) -> Tensor:
    if labels.class_weights is None:
        return torch.ones(inputs.classes, dtype=torch.float32, device=inputs.pixels.device)
    return labels.class_weights.float().contiguous()


def _numbers(inputs: classify.Inputs, labels: Labels, chunks: int, tiles_per_chunk: int) -> tuple[float, ...]:
    """What both kernels take as numbers, in order."""
    _, height, width = labels.target.shape
    return (
        *inputs.sizes, height, width, labels.ignore_index, chunks, tiles_per_chunk, labels.smoothing, inputs.eps
    )  # fmt: skip


def segmentation_forward(inputs: classify.Inputs, labels: Labels) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """cross_entropy, a scalar, and overlap, volume, count [K], float32.

    A label that is neither ignore_index nor in [0, K) trips an assertion on the device, without waiting for it.

    Raises:
        TypeError, ValueError: dtype or shape outside what the kernels take.
    """
    inputs = _prepared(inputs)
    pixels, classes = inputs.pixels, inputs.classes
    batch = pixels.shape[0]
    blocks = classify.options("segmentation_sums", inputs)
    chunks, tiles_per_chunk = classify.split(inputs, blocks, batch)
    part_sums = torch.empty(batch * chunks, 2 * classes + 1, dtype=torch.float32, device=pixels.device)
    part_counts = torch.empty(batch * chunks, classes + 1, dtype=torch.int32, device=pixels.device)
    with on_device(pixels.device):
        segmentation_sums[(batch * chunks,)](
            *inputs[:4], labels.target.contiguous(), _weights(inputs, labels), part_sums, part_counts,
            *_numbers(inputs, labels, chunks, tiles_per_chunk), **blocks,
        )  # fmt: skip
        sums = sum_partials(part_sums, torch.float32, 1, batch * chunks)[0]
    counts = part_counts.sum(0)
    expected = f"target must hold classes from 0 to {classes - 1} or ignore_index {labels.ignore_index}"
    torch._assert_async(counts[classes] == 0, expected)
    # No result of an operator may share memory with another.
    return (
        sums[2 * classes].clone(),
        sums[:classes].clone(),
        sums[classes : 2 * classes].clone(),
        counts[:classes].float(),
    )


def segmentation_backward(
    inputs: classify.Inputs, labels: Labels, grad_cross_entropy: Tensor, grad_overlap: Tensor, grad_volume: Tensor
) -> classify.Gradients:
    """Gradients of ``segmentation_forward`` for those of its first three results.

    Raises:
        TypeError, ValueError: dtype or shape outside what the kernels take.
    """
    inputs = _prepared(inputs)
    pixels, hyper = inputs.pixels, inputs.hyper
    batch, channels = pixels.shape[0], pixels.shape[-1]
    blocks = classify.options("segmentation_grad", inputs)
    chunks, tiles_per_chunk = classify.split(inputs, blocks, batch)
    scratch: dict[str, Any] = {"dtype": torch.float32, "device": pixels.device}
    part_norm = torch.empty(batch * chunks, 2, channels // 4, **scratch)
    part_hyper = torch.empty(batch, chunks, *hyper.shape[1:], **scratch)
    grad_pixels = torch.empty_like(pixels)
    gradients = (g.float().contiguous() for g in (grad_cross_entropy, grad_overlap, grad_volume))
    with on_device(pixels.device):
        segmentation_grad[(batch * chunks,)](
            *inputs[:4], labels.target.contiguous(), _weights(inputs, labels), *gradients,
            grad_pixels, part_norm, part_hyper, *_numbers(inputs, labels, chunks, tiles_per_chunk), **blocks,
        )  # fmt: skip
        grad_norm = sum_partials(part_norm, torch.float32, 1, batch * chunks).view(2, channels // 4)
        grad_hyper = sum_partials(part_hyper, torch.float32, batch, chunks).view(hyper.shape)
    return classify.Gradients(grad_pixels, grad_norm[0].clone(), grad_norm[1].clone(), grad_hyper)
