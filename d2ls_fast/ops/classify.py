"""classify: refined pixels and class vectors to logits, or to labels, at four times the pixels' resolution."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from d2ls_fast import _extension
from d2ls_fast.backends import select
from d2ls_fast.backends.native import CUDA_GRADIENT_VECTORS
from d2ls_fast.ops import _cuda
from d2ls_fast.ops._classify import classify_definition, classify_labels_definition, empty_labels, plain_backward
from d2ls_fast.ops._library import LIBRARY, define, operator_of
from d2ls_fast.ops.refine import as_vectors

PrototypeReduction = Literal["logsumexp", "max", "mean"]


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
    name = select("classify", pixels, hyper.shape[1])
    if name in ("reference", "torch"):
        return classify_definition(*arguments)
    logits: Tensor = operator_of("classify", name)(*arguments)
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
    name = select("classify_labels", pixels, hyper.shape[1])
    if name in ("reference", "torch"):
        labels, confidence = classify_labels_definition(*arguments, return_confidence)
    else:
        labels, confidence = operator_of("classify_labels", name)(*arguments, return_confidence)
    labels = labels[:, :height, :width].contiguous()
    return labels, confidence[:, :height, :width].contiguous() if return_confidence else None


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


# --- registration -------------------------------------------------------------------------------------------------

_TENSORS = "Tensor pixels, Tensor norm_weight, Tensor norm_bias, Tensor hyper"
_OPTIONS = "int prototypes, str reduction, float eps"


def _fake_classify(image: Tensor, norm_weight: Tensor, norm_bias: Tensor, hyper: Tensor, *options: Any) -> Tensor:
    b, h, w, _ = image.shape
    return hyper.new_empty((b, hyper.shape[1] // options[0], 4 * h, 4 * w))


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


def _cuda_backward(*arguments: Any) -> tuple[Tensor, ...]:
    fits = arguments[3].shape[1] <= CUDA_GRADIENT_VECTORS
    gradients: tuple[Tensor, ...] = (_cuda.classify_backward if fits else _GPU[2])(*arguments)
    return gradients


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
        fake=empty_labels,
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
_register("_cuda", cpu=(None, None, None), cuda=(_cuda.classify, _cuda.classify_labels, _cuda_backward))
