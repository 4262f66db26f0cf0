"""``classify`` in Triton: a tile of pixels to logits or to labels in one pass, and its backward.

With the two shuffles seen as a split of a pixel's C channels over its 16 sub-pixels (see ``_classify_tiles``)::

    outer = LayerNorm(x) weight + bias    inner = GELU(outer)    U = GELU(inner)    s = U hyper^T    logit = reduce_p s

Nothing of the size of U is stored: backward recomputes it tile by tile. Logits are written in whole lines of the image;
labels come from a running maximum over blocks of classes, so that K and P are free. With ds the gradient of s::

    grad_hyper = ds^T U    dU = ds hyper    d outer = dU GELU'(inner) GELU'(outer)    then the norm undone

All class vectors in one block: one kernel gives every gradient. Otherwise a second one owns the blocks of vectors.
Sums over pixels go to per-chunk partial results that are added up in a fixed order, without atomics: results repeat
bit for bit. Everything is computed in float32 whatever the dtype of the pixels; products are exact unless torch
allows TF32.

Shapes: B, h, w, K, P >= 1 are free; C is a multiple of 16 from 16 to 1024.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import _classify_backward, _classify_forward, configs
from ._launch import DTYPES, on_device, sum_partials, tf32_allowed


class Inputs(NamedTuple):
    """The arguments of classify, in order: pixels [B, h, w, C], norm vectors [C/4], hyper [B, K * P, C/16]."""

    pixels: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    hyper: Tensor
    prototypes: int
    reduction: str
    eps: float

    @property
    def classes(self) -> int:
        return self.hyper.shape[1] // self.prototypes

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """What every kernel takes as numbers: h, w, K, P."""
        return self.pixels.shape[1], self.pixels.shape[2], self.classes, self.prototypes


class Gradients(NamedTuple):
    """Gradients of the tensors: of pixels in their dtype, the others float32."""

    pixels: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    hyper: Tensor


def why_not(pixels: Tensor) -> str:
    """Why the kernels cannot take these pixels, or nothing."""
    channels = pixels.shape[-1]
    if channels % 16 or not 16 <= channels <= 1024:
        return f"channels must be a multiple of 16 from 16 to 1024, got {channels}"
    return ""


def prepared(operator: str, inputs: Inputs) -> Inputs:
    """The inputs made contiguous, all but the pixels in float32.

    Raises:
        TypeError, ValueError: dtype or shape outside what the kernels take.
    """
    pixels, *shared = inputs[:4]
    if pixels.dtype not in DTYPES:
        raise TypeError(f"{operator}: pixels must be float32, bfloat16 or float16, got {pixels.dtype}")
    problem = why_not(pixels)
    if problem:
        raise ValueError(f"{operator}: {problem}")
    weight, bias, hyper = (t.float().contiguous() for t in shared)
    return Inputs(pixels.contiguous(), weight, bias, hyper, *inputs[4:])


def options(kernel: str, inputs: Inputs) -> dict[str, Any]:
    """Compile-time arguments and launch options of one kernel."""
    channels, kind = inputs.pixels.shape[-1], "tf32" if tf32_allowed() else "ieee"
    tile = configs.architecture(inputs.pixels.device).classify[kernel, kind]
    return {
        "C": channels,
        **configs.classify_blocks(kernel, tile, channels, inputs.classes, inputs.prototypes),
        "REDUCTION": inputs.reduction,
        "PRECISION": kind,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        "enable_fp_fusion": True,
    }


def tiles_of(inputs: Inputs, blocks: dict[str, Any]) -> int:
    """Tiles of one image; a tile stays within a row of the grid."""
    return inputs.pixels.shape[1] * triton.cdiv(inputs.pixels.shape[2], blocks["BLOCK_N"])


def split(inputs: Inputs, blocks: dict[str, Any], groups: int) -> tuple[int, int]:
    """(chunks, tiles per chunk) of one image for a kernel with ``groups`` programs per chunk."""
    programs = configs.architecture(inputs.pixels.device).programs
    return configs.split(tiles_of(inputs, blocks) * blocks["BLOCK_N"], blocks["BLOCK_N"], groups, programs)


def _image(inputs: Inputs, dtype: torch.dtype, *classes: int) -> Tensor:
    """Memory for something of full resolution, [B, (K,) 4h, 4w]."""
    pixels = inputs.pixels
    batch, height, width, _ = pixels.shape
    return torch.empty((batch, *classes, 4 * height, 4 * width), dtype=dtype, device=pixels.device)


def classify_logits(inputs: Inputs) -> Tensor:
    """Logits [B, K, 4h, 4w], float32.

    Raises:
        TypeError, ValueError: dtype or shape outside what the kernels take.
    """
    inputs = prepared("classify", inputs)
    blocks = options("classify_logits", inputs)
    logits = _image(inputs, torch.float32, inputs.classes)
    with on_device(logits.device):
        _classify_forward.classify_logits[(inputs.pixels.shape[0] * tiles_of(inputs, blocks),)](
            *inputs[:4], logits, *inputs.sizes, inputs.eps, **blocks
        )
    return logits


def classify_labels(inputs: Inputs, return_confidence: bool) -> tuple[Tensor, Tensor]:
    """Labels [B, 4h, 4w] (uint8, int16 above 256 classes) and their softmax probability, float32 (else empty).

    Raises:
        TypeError, ValueError: dtype or shape outside what the kernels take.
    """
    inputs = prepared("classify_labels", inputs)
    blocks = options("classify_labels", inputs)
    labels = _image(inputs, torch.uint8 if inputs.classes <= 256 else torch.int16)
    confidence = _image(inputs, torch.float32) if return_confidence else None
    with on_device(labels.device):
        _classify_forward.classify_labels[(inputs.pixels.shape[0] * tiles_of(inputs, blocks),)](
            *inputs[:4], labels, confidence, *inputs.sizes, inputs.eps, CONFIDENCE=return_confidence, **blocks
        )
    return labels, inputs.hyper.new_empty((0,)) if confidence is None else confidence


def classify_backward(inputs: Inputs, grad_logits: Tensor) -> Gradients:
    """Gradients of ``classify_logits`` for ``grad_logits`` [B, K, 4h, 4w].

    Raises:
        TypeError, ValueError: dtype or shape outside what the kernels take.
    """
    inputs = prepared("classify", inputs)
    grad_logits = grad_logits.float().contiguous()
    pixels, _, _, hyper = inputs[:4]
    batch, channels = pixels.shape[0], pixels.shape[-1]
    blocks = options("classify_grad_pixels", inputs)
    one_block = blocks["BLOCK_K"] >= inputs.classes
    chunks, tiles_per_chunk = split(inputs, blocks, batch)
    scratch: dict[str, Any] = {"dtype": torch.float32, "device": pixels.device}
    part_norm = torch.empty(batch * chunks, 2, channels // 4, **scratch)
    part_hyper = torch.empty(batch, chunks, *hyper.shape[1:], **scratch) if one_block else None
    grad_pixels = torch.empty_like(pixels)
    with on_device(pixels.device):
        _classify_backward.classify_grad_pixels[(batch * chunks,)](
            *inputs[:4], grad_logits, grad_pixels, part_norm, part_hyper, *inputs.sizes, chunks, tiles_per_chunk,
            inputs.eps, ONE_BLOCK=one_block, **blocks,
        )  # fmt: skip
        grad_norm = sum_partials(part_norm, torch.float32, 1, batch * chunks).view(2, channels // 4)
        if part_hyper is None:
            part_hyper = _partial_hyper(inputs, grad_logits)
        grad_hyper = sum_partials(part_hyper, torch.float32, batch, part_hyper.shape[1]).view(hyper.shape)
    # No result of an operator may share memory with another.
    return Gradients(grad_pixels, grad_norm[0].clone(), grad_norm[1].clone(), grad_hyper)


def _partial_hyper(inputs: Inputs, grad_logits: Tensor) -> Tensor:
    """grad_hyper in parts [B, chunks, K * P, C/16], by blocks of class vectors."""
    batch, hyper = inputs.pixels.shape[0], inputs.hyper
    blocks = options("classify_grad_hyper", inputs)
    groups = batch * triton.cdiv(inputs.classes, blocks["BLOCK_K"])
    chunks, tiles_per_chunk = split(inputs, blocks, groups)
    part_hyper = torch.empty(batch, chunks, *hyper.shape[1:], dtype=torch.float32, device=hyper.device)
    _classify_backward.classify_grad_hyper[(groups * chunks,)](
        *inputs[:4], grad_logits, part_hyper, *inputs.sizes, chunks, tiles_per_chunk, inputs.eps, **blocks
    )
    return part_hyper
