"""classify: refined pixels and class vectors to logits, or to labels, at four times the pixels' resolution."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from d2ls_fast import _extension
from d2ls_fast.backends import select
from d2ls_fast.ops._library import LIBRARY, define
from d2ls_fast.ops.refine import as_vectors

PrototypeReduction = Literal["logsumexp", "max", "mean"]

# Upper bound on the scores (entries x full-resolution pixels) that the definition of classify_labels holds at once:
# 16 MB in float32.
_CHUNK_SCORES = 4 * 1024 * 1024


def classify(
    pixels: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    hyper: Tensor,
    grid: tuple[int, int],
    prototypes: int = 1,
    reduction: PrototypeReduction = "logsumexp",
    eps: float = 1e-6,
) -> Tensor:
    r"""Logits of every class at full resolution.

    .. math::
        U = \mathrm{GELU}(\mathrm{shuffle}(\mathrm{GELU}(\mathrm{LN}(\mathrm{shuffle}(x))))), \quad
        \mathrm{logit}_k = \mathrm{reduce}_p \; g_{kp} \cdot U

    Both shuffles are PixelShuffle(2): a pixel of C channels becomes 2 x 2 sub-pixels of C/4, over which the norm runs,
    then 4 x 4 of C/16. No neighbour is read.

    Args:
        pixels: x, ``[B, h * w, C]``, C a multiple of 16; float32, bfloat16, float16 (kernels) or float64 (PyTorch).
        norm_weight, norm_bias: of the LayerNorm, ``[C/4]``; any float dtype, as hyper.
        hyper: g, the class vectors ``[B, K * P, C/16]``, class-major rows ``k * P + p``.
        grid: (h, w).
        prototypes: P, rows of hyper per class.
        reduction: how the scores of a class's prototypes become one: ``logsumexp``, ``max`` or ``mean``.
        eps: added to the variance.

    Returns:
        logits ``[B, K, 4h, 4w]``, float32 (float64 for float64 pixels). The kernels compute in float32 throughout.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; the message names the argument.
        BackendError: a forced back end cannot serve the call.

    Differentiable once in the four tensors; the backward recomputes U and stores nothing of full resolution but the
    gradient that comes in. Bitwise repeatable.

    Source: the upsampler and hypernetwork of the D2LS decoder (arXiv 2503.06683).
    """
    norm_weight, norm_bias, hyper = as_vectors(pixels, norm_weight, norm_bias, hyper)
    check_classify("classify", pixels, norm_weight, norm_bias, hyper, grid, prototypes, reduction)
    arguments = (pixels.unflatten(1, grid), norm_weight, norm_bias, hyper, prototypes, reduction, eps)
    name = select("classify", pixels)
    if name in ("reference", "torch"):
        return classify_definition(*arguments)
    operator = torch.ops.d2ls_fast.classify_triton if name == "triton" else torch.ops.d2ls_fast.classify
    logits: Tensor = operator(*arguments)
    return logits


@torch.no_grad()
def classify_labels(
    pixels: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    hyper: Tensor,
    grid: tuple[int, int],
    size: tuple[int, int],
    return_confidence: bool = False,
    prototypes: int = 1,
    reduction: PrototypeReduction = "logsumexp",
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor | None]:
    """The class of the largest logit of every pixel (the first of equals); the full logits never exist.

    Args:
        size: (H, W) of the result, at most (4h, 4w); the rest is cropped from the bottom and the right.
        return_confidence: also the softmax probability of the label.
        pixels, norm_weight, norm_bias, hyper, grid, prototypes, reduction, eps: as for :func:`classify`.

    Returns:
        labels ``[B, H, W]`` (uint8, int16 above 256 classes) and the confidence ``[B, H, W]`` float32, or None.

    Raises:
        ValueError, BackendError: as :func:`classify`; or size does not fit the grid.
    """
    norm_weight, norm_bias, hyper = as_vectors(pixels, norm_weight, norm_bias, hyper)
    check_classify("classify_labels", pixels, norm_weight, norm_bias, hyper, grid, prototypes, reduction)
    (height, width), (h, w) = size, grid
    if not (1 <= height <= 4 * h and 1 <= width <= 4 * w):
        raise ValueError(f"classify_labels: size must be at most {(4 * h, 4 * w)} and at least (1, 1), got {size}")
    arguments = (pixels.unflatten(1, grid), norm_weight, norm_bias, hyper, prototypes, reduction, eps)
    name = select("classify_labels", pixels)
    if name in ("reference", "torch"):
        labels, confidence = classify_labels_definition(*arguments, return_confidence)
    else:
        namespace = torch.ops.d2ls_fast
        operator = namespace.classify_labels_triton if name == "triton" else namespace.classify_labels
        labels, confidence = operator(*arguments, return_confidence)
    labels = labels[:, :height, :width].contiguous()
    return labels, confidence[:, :height, :width].contiguous() if return_confidence else None


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
    return _to_image(_reduced(_scores(image, norm_weight, norm_bias, hyper, eps), prototypes, reduction))


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
    labels, confidence = _fake_labels(
        image, norm_weight, norm_bias, hyper, prototypes, reduction, eps, return_confidence
    )
    height, width = image.shape[1:3]
    rows = max(1, _CHUNK_SCORES // (16 * width * hyper.shape[1]))
    for b in range(image.shape[0]):
        for first in range(0, height, rows):
            band = image[b : b + 1, first : first + rows]
            scores = _scores(band, norm_weight, norm_bias, hyper[b : b + 1], eps)
            logits = _to_image(_reduced(scores, prototypes, reduction))[0]
            here = (b, slice(4 * first, 4 * (first + rows)))
            best = logits.argmax(0)
            labels[here] = best.to(labels.dtype)
            if return_confidence:
                top = logits.gather(0, best.unsqueeze(0))[0]
                confidence[here] = torch.exp(top - logits.logsumexp(0)).float()
    return labels, confidence


def check_classify(
    operator: str,
    pixels: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    hyper: Tensor,
    grid: tuple[int, int],
    prototypes: int,
    reduction: str,
) -> None:
    """Raise ``ValueError`` unless the arguments fit each other; see :func:`classify`."""
    if pixels.dim() != 3 or 0 in pixels.shape or pixels.shape[2] % 16:
        raise ValueError(
            f"{operator}: pixels must be [B, h * w, C], not empty, C a multiple of 16, got {tuple(pixels.shape)}"
        )
    b, n, c = pixels.shape
    if not pixels.dtype.is_floating_point:
        raise ValueError(f"{operator}: pixels must be a floating-point tensor, got {pixels.dtype}")
    if min(grid) < 1 or grid[0] * grid[1] != n:
        raise ValueError(f"{operator}: grid must be (h, w) with h * w = {n}, got {tuple(grid)}")
    if hyper.dim() != 3 or hyper.shape[0] != b or hyper.shape[1] == 0 or hyper.shape[2] != c // 16:
        raise ValueError(f"{operator}: hyper must be [{b}, K * P, {c // 16}], got {tuple(hyper.shape)}")
    if prototypes < 1 or hyper.shape[1] % prototypes:
        raise ValueError(f"{operator}: prototypes must divide the {hyper.shape[1]} rows of hyper, got {prototypes}")
    if reduction not in get_args(PrototypeReduction):
        names = ", ".join(get_args(PrototypeReduction))
        raise ValueError(f"{operator}: reduction must be one of {names}, got {reduction!r}")
    for name, vector in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if vector.shape != (c // 4,):
            raise ValueError(f"{operator}: {name} must be [{c // 4}], got {tuple(vector.shape)}")
    for name, tensor in (("norm_weight", norm_weight), ("norm_bias", norm_bias), ("hyper", hyper)):
        if tensor.device != pixels.device:
            raise ValueError(
                f"{operator}: {name} must be on the device of pixels, {pixels.device}, got {tensor.device}"
            )


def _scores(image: Tensor, norm_weight: Tensor, norm_bias: Tensor, hyper: Tensor, eps: float) -> Tensor:
    """``[B, h, w, C]`` -> ``[B, h, w, 4, 4, K * P]``: the outer 2 x 2 block (first shuffle), then the inner one.

    PixelShuffle splits channel ``c * 4 + i * 2 + j`` into channel c of sub-pixel (i, j). Both shuffles stay inside
    a stride-4 pixel, so they are only views of its channels and no image-shaped tensor is formed.
    """
    outer = _split(image).to(norm_weight.dtype)
    outer = F.layer_norm(outer, outer.shape[-1:], norm_weight, norm_bias, eps).to(image.dtype)
    features = F.gelu(_split(F.gelu(outer)))  # [B, h, w, 4, 4, C/16]
    with torch.autocast(image.device.type, enabled=False):
        scores = features.to(hyper.dtype).flatten(1, 4) @ hyper.transpose(-1, -2)
    return scores.unflatten(1, features.shape[1:5])


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


def _to_image(scores: Tensor) -> Tensor:
    """``[B, h, w, 4, 4, K]`` -> ``[B, K, 4h, 4w]``; row = 4 y + 2 (outer i) + (inner i), columns likewise."""
    blocks = scores.unflatten(4, (2, 2)).unflatten(3, (2, 2))  # [B, h, w, i1, j1, i2, j2, K]
    return blocks.permute(0, 7, 1, 3, 5, 2, 4, 6).flatten(5, 7).flatten(2, 4)


def _from_image(image: Tensor) -> Tensor:
    """The way back from :func:`_to_image`."""
    blocks = image.unflatten(3, (-1, 2, 2)).unflatten(2, (-1, 2, 2))  # [B, K, h, i1, i2, w, j1, j2]
    return blocks.permute(0, 2, 5, 3, 6, 4, 7, 1).flatten(5, 6).flatten(3, 4)


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
    x = _split(image).to(norm_weight.dtype)
    outer, mean, inverse_sigma = torch.native_layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
    inner = _split(F.gelu(outer))
    features = F.gelu(inner)
    grad = _from_image(grad_logits)
    if prototypes > 1:
        grad = grad.unsqueeze(-1)
        scores = (features.flatten(1, 4) @ hyper.transpose(-1, -2)).unflatten(1, features.shape[1:5])
        by_class = scores.unflatten(-1, (-1, prototypes))
        if reduction == "logsumexp":
            grad = grad * by_class.softmax(-1)
        elif reduction == "max":
            largest = (by_class == by_class.amax(-1, keepdim=True)).to(grad.dtype)
            grad = grad * largest / largest.sum(-1, keepdim=True)
        else:
            grad = grad.expand_as(by_class) / prototypes
        grad = grad.flatten(-2)
    grad = grad.flatten(1, 4)
    grad_hyper = grad.transpose(-1, -2) @ features.flatten(1, 4)
    grad = torch.ops.aten.gelu_backward((grad @ hyper).unflatten(1, features.shape[1:5]), inner)
    grad = torch.ops.aten.gelu_backward(grad.transpose(-1, -2).flatten(-2), outer)
    grad, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
        grad, x, x.shape[-1:], mean, inverse_sigma, norm_weight, norm_bias, [True, True, True]
    )
    return grad.transpose(-1, -2).flatten(-2).to(image.dtype), grad_weight, grad_bias, grad_hyper


# --- registration -------------------------------------------------------------------------------------------------

_TENSORS = "Tensor pixels, Tensor norm_weight, Tensor norm_bias, Tensor hyper"
_OPTIONS = "int prototypes, str reduction, float eps"


def _fake_classify(image: Tensor, norm_weight: Tensor, norm_bias: Tensor, hyper: Tensor, *options: Any) -> Tensor:
    b, h, w, _ = image.shape
    return hyper.new_empty((b, hyper.shape[1] // options[0], 4 * h, 4 * w))


def _fake_labels(image: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    hyper, prototypes, return_confidence = arguments[2], arguments[3], arguments[-1]
    b, h, w, _ = image.shape
    dtype = torch.uint8 if hyper.shape[1] // prototypes <= 256 else torch.int16
    labels = image.new_empty((b, 4 * h, 4 * w), dtype=dtype)
    return labels, image.new_empty(labels.shape if return_confidence else (0,), dtype=torch.float32)


def _fake_backward(image: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (image, *arguments[:3]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _triton_classify(*arguments: Any) -> Tensor:
    from d2ls_fast.kernels import classify as kernel  # imported at the first call: it imports triton

    return kernel.classify_logits(kernel.Inputs(*arguments))


def _triton_labels(*arguments: Any) -> tuple[Tensor, Tensor]:
    from d2ls_fast.kernels import classify as kernel

    *inputs, return_confidence = arguments
    return kernel.classify_labels(kernel.Inputs(*inputs), return_confidence)


def _triton_backward(*arguments: Any) -> tuple[Tensor, ...]:
    from d2ls_fast.kernels import classify as kernel

    return kernel.classify_backward(kernel.Inputs(*arguments[:4], *arguments[5:]), arguments[4])


def _where_it_fits(kernel: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """The Triton kernel, or plain PyTorch for pixels it does not take (a forced back end refuses those instead)."""

    def either(image: Tensor, *arguments: Any) -> Any:
        from d2ls_fast.kernels.classify import why_not

        return (plain if why_not(image) else kernel)(image, *arguments)

    return either


def _register(suffix: str, cpu: tuple[Any, Any, Any], cuda: tuple[Any, Any, Any]) -> None:
    """classify, classify_labels and the backward operator: three kernels (or Nones) for each device."""
    name = f"classify{suffix}"
    define(name, f"({_TENSORS}, {_OPTIONS}) -> Tensor", fake=_fake_classify, cpu=cpu[0], cuda=cuda[0])
    define(
        f"classify_labels{suffix}",
        f"({_TENSORS}, {_OPTIONS}, bool return_confidence) -> (Tensor, Tensor)",
        fake=_fake_labels,
        cpu=cpu[1],
        cuda=cuda[1],
    )
    define(
        f"{name}_backward",
        f"({_TENSORS}, Tensor grad_logits, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)",
        fake=_fake_backward,
        cpu=cpu[2],
        cuda=cuda[2],
    )
    backward_operator = getattr(torch.ops.d2ls_fast, f"{name}_backward")

    def backward(ctx: Any, grad_logits: Tensor) -> tuple[Any, ...]:
        return (*backward_operator(*ctx.saved_tensors, grad_logits, *ctx.options), None, None, None)

    torch.library.register_autograd(f"d2ls_fast::{name}", backward, setup_context=_setup_context, lib=LIBRARY)


_PLAIN = (classify_definition, classify_labels_definition, plain_backward)
_TRITON = (_triton_classify, _triton_labels, _triton_backward)
_GPU: tuple[Any, Any, Any] = _PLAIN
if importlib.util.find_spec("triton") is not None:
    _GPU = (
        _where_it_fits(_triton_classify, classify_definition),
        _where_it_fits(_triton_labels, classify_labels_definition),
        _where_it_fits(_triton_backward, plain_backward),
    )

_register("", cpu=(None, None, None) if _extension.LOADED else _PLAIN, cuda=_GPU)
_register("_triton", cpu=_TRITON, cuda=_TRITON)
