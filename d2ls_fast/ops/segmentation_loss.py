"""segmentation_loss: refined pixels, class vectors and labels to soft cross-entropy and dice, without logits."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from d2ls_fast import _extension
from d2ls_fast.backends import select
from d2ls_fast.ops import _cuda
from d2ls_fast.ops._classify import classify_definition
from d2ls_fast.ops._classify import plain_backward as classify_plain_backward
from d2ls_fast.ops._library import LIBRARY, define, operator_of
from d2ls_fast.ops._segmentation import (
    Compat,
    SegmentationSums,
    cross_entropy_sum,
    dice_sums,
    segmentation_means,
)
from d2ls_fast.ops.classify import PrototypeReduction, check_classify
from d2ls_fast.ops.refine import as_vectors


def segmentation_loss(
    pixels: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    hyper: Tensor,
    target: Tensor,
    grid: tuple[int, int],
    smoothing: float = 0.05,
    dice_smooth: float = 0.05,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
    compat: Compat = "corrected",
    prototypes: int = 1,
    reduction: PrototypeReduction = "logsumexp",
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    r"""Soft cross-entropy and soft dice of :func:`~d2ls_fast.ops.classify.classify`'s logits, which are never stored.

    With p the softmax of the logits, y the labels, w the class weights (one by default), t the one-hot labels and sums
    over the labelled pixels n of the whole batch:

    .. math::
        \mathrm{cross\ entropy} = \frac{-1}{Z} \sum_n \Big( (1 - \epsilon) w_{y_n} \log p_{n y_n}
            + \frac{\epsilon}{K} \sum_k w_k \log p_{nk} \Big), \qquad
        \mathrm{dice} = \frac{1}{|P|} \sum_{k \in P} \Big( 1 -
            \frac{2 \sum_n p_{nk} t_{nk} + s}{\sum_n p_{nk} + \sum_n t_{nk} + s} \Big)

    ``corrected``: Z = sum of w_y over labelled pixels and P = classes with at least one pixel. ``release``: Z = all
    pixels, ignored ones included, and |P| = K although absent classes add nothing.

    Args:
        pixels, norm_weight, norm_bias, hyper, grid, prototypes, reduction, eps: as for classify.
        target: int64 ``[B, H, W]``, at most (4h, 4w); logits beyond it, at the bottom and the right, take no part.
        smoothing: epsilon of the cross-entropy in [0, 1).
        dice_smooth: s, not negative.
        class_weights: w, ``[K]``, of the cross-entropy; no gradient.
        ignore_index: label that takes no part anywhere.
        compat: which means.

    Returns:
        cross-entropy and dice, scalars, float32 (float64 for float64 pixels); zero with zero gradients when no pixel is
        labelled.

    Raises:
        ValueError: shapes, dtypes, devices or values do not fit, or target holds a label that is neither ignore_index
            nor in [0, K); the message names the argument. Inside torch.compile and on GPUs a wrong label is a
            RuntimeError or a device-side assertion instead.
        BackendError: a forced back end cannot serve the call.

    Differentiable once in pixels, norm_weight, norm_bias and hyper; the backward recomputes the logits tile by tile.
    Bitwise repeatable.

    Source: the D2LS recipe (arXiv 2503.06683), after UNetFormer's loss.
    """
    _check_means(dice_smooth, compat)
    sums = segmentation_sums(
        pixels,
        norm_weight,
        norm_bias,
        hyper,
        target,
        grid,
        smoothing,
        class_weights,
        ignore_index,
        prototypes,
        reduction,
        eps,
    )
    return segmentation_means(sums, class_weights, dice_smooth, compat)


def segmentation_sums(
    pixels: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    hyper: Tensor,
    target: Tensor,
    grid: tuple[int, int],
    smoothing: float = 0.05,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
    prototypes: int = 1,
    reduction: PrototypeReduction = "logsumexp",
    eps: float = 1e-6,
) -> SegmentationSums:
    """The sums of a batch from which :func:`segmentation_loss` makes its means; those of several batches may be added.

    Arguments, errors and derivatives are those of :func:`segmentation_loss`.
    """
    norm_weight, norm_bias, hyper = as_vectors(pixels, norm_weight, norm_bias, hyper)
    check_classify("segmentation_loss", pixels, norm_weight, norm_bias, hyper, grid, prototypes, reduction)
    _check_target(target, pixels, grid)
    _check_sums(smoothing, class_weights, hyper.shape[1] // prototypes, pixels.device)
    if class_weights is not None:
        class_weights = class_weights.detach().to(hyper.dtype)
    image = pixels.unflatten(1, grid)
    arguments = (image, norm_weight, norm_bias, hyper, target, class_weights, smoothing, ignore_index)
    name = select("segmentation_loss", pixels, entries=hyper.shape[1])
    if name in ("reference", "torch"):
        sums = segmentation_sums_definition(*arguments, prototypes, reduction, eps)
    else:
        try:
            sums = operator_of("segmentation_sums", name)(*arguments, prototypes, reduction, eps)
        except RuntimeError as error:
            wrong_label = re.search("target must hold classes.*", str(error))
            if wrong_label is None:
                raise
            raise ValueError(f"segmentation_loss: {wrong_label[0]}") from None
    return SegmentationSums(*sums, hyper.new_full((), target.numel()))


def segmentation_sums_definition(
    image: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    hyper: Tensor,
    target: Tensor,
    class_weights: Tensor | None,
    smoothing: float,
    ignore_index: int,
    prototypes: int,
    reduction: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator in plain PyTorch, through the logits: cross-entropy, a sum; overlap, volume and count ``[K]``."""
    _check_labels(target, hyper.shape[1] // prototypes, ignore_index)
    logits = classify_definition(image, norm_weight, norm_bias, hyper, prototypes, reduction, eps)
    logits = logits[..., : target.shape[1], : target.shape[2]]
    with torch.autocast(image.device.type, enabled=False):
        total = cross_entropy_sum(logits, target, class_weights, smoothing, ignore_index)
        return (total, *dice_sums(logits, target, ignore_index))


def plain_backward(
    image: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    hyper: Tensor,
    target: Tensor,
    class_weights: Tensor | None,
    smoothing: float,
    ignore_index: int,
    prototypes: int,
    reduction: str,
    eps: float,
    grad_cross_entropy: Tensor,
    grad_overlap: Tensor,
    grad_volume: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The backward formulas in PyTorch, for machines without the compiled extension; recomputes the forward."""
    options, dtype = (prototypes, reduction, eps), hyper.dtype
    logits = classify_definition(image.to(dtype), norm_weight, norm_bias, hyper, *options)
    (height, width), (rows, columns) = target.shape[1:], logits.shape[2:]
    p = logits[..., :height, :width].softmax(1)
    k = p.shape[1]
    weights = p.new_ones(k) if class_weights is None else class_weights
    labelled = target != ignore_index
    labels = target.where(labelled, 0)
    truth = F.one_hot(labels, k).movedim(-1, 1).to(dtype)
    own = (1 - smoothing) * weights[labels].unsqueeze(1)
    every = smoothing / k * weights
    grad = grad_cross_entropy * (p * (own + every.sum()) - own * truth - every.view(-1, 1, 1))
    by_p = grad_volume.view(-1, 1, 1) + grad_overlap.view(-1, 1, 1) * truth
    grad = (grad + p * (by_p - (p * by_p).sum(1, keepdim=True))) * labelled.unsqueeze(1)
    grad = F.pad(grad, (0, columns - width, 0, rows - height))
    return classify_plain_backward(image, norm_weight, norm_bias, hyper, grad, *options)


def _check_target(target: Tensor, pixels: Tensor, grid: tuple[int, int]) -> None:
    if target.dtype != torch.int64:
        raise ValueError(f"segmentation_loss: target must be int64, got {target.dtype}")
    b, height, width = pixels.shape[0], 4 * grid[0], 4 * grid[1]
    if target.dim() != 3 or target.shape[0] != b or 0 in target.shape:
        raise ValueError(f"segmentation_loss: target must be [{b}, H, W], not empty, got {tuple(target.shape)}")
    if target.shape[1] > height or target.shape[2] > width:
        size = tuple(target.shape[1:])
        raise ValueError(f"segmentation_loss: target must have at most (4h, 4w) = {(height, width)} pixels, got {size}")
    if target.device != pixels.device:
        raise ValueError(
            f"segmentation_loss: target must be on the device of pixels, {pixels.device}, got {target.device}"
        )


def _check_means(dice_smooth: float, compat: str) -> None:
    if not dice_smooth >= 0.0:
        raise ValueError(f"segmentation_loss: dice_smooth must not be negative, got {dice_smooth}")
    if compat not in get_args(Compat):
        raise ValueError(f"segmentation_loss: compat must be one of {', '.join(get_args(Compat))}, got {compat!r}")


def _check_sums(smoothing: float, class_weights: Tensor | None, classes: int, device: torch.device) -> None:
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"segmentation_loss: smoothing must be in [0, 1), got {smoothing}")
    if class_weights is not None and class_weights.shape != (classes,):
        raise ValueError(f"segmentation_loss: class_weights must be [{classes}], got {tuple(class_weights.shape)}")
    if class_weights is not None and class_weights.device != device:
        raise ValueError(
            f"segmentation_loss: class_weights must be on the device of pixels, {device}, got {class_weights.device}"
        )


def _check_labels(target: Tensor, classes: int, ignore_index: int) -> None:
    expected = f"target must hold classes from 0 to {classes - 1} or ignore_index {ignore_index}"
    wrong = (target != ignore_index) & ((target < 0) | (target >= classes))
    if torch.compiler.is_compiling() or target.device.type != "cpu":
        torch._assert_async(~wrong.any(), expected)  # no wait for the device, no graph break
    elif wrong.any():
        raise ValueError(f"segmentation_loss: {expected}, got the label {int(target[wrong][0])}")


# --- registration -------------------------------------------------------------------------------------------------

_ARGUMENTS = (
    "Tensor pixels, Tensor norm_weight, Tensor norm_bias, Tensor hyper, Tensor target, Tensor? class_weights, "
    "float smoothing, int ignore_index, int prototypes, str reduction, float eps"
)
_TENSORS = 6  # the first arguments; class_weights may be None


def _fake(image: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hyper, prototypes = arguments[2], arguments[7]
    total, (a, b, c) = hyper.new_empty(()), (hyper.new_empty((hyper.shape[1] // prototypes,)) for _ in range(3))
    return total, a, b, c


def _fake_backward(image: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (image, *arguments[:3]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:_TENSORS])
    ctx.options = inputs[_TENSORS:]


def _triton_forward(*arguments: Any) -> tuple[Tensor, ...]:
    from d2ls_fast.kernels import segmentation_loss as kernel  # imported at the first call: it imports triton

    return kernel.segmentation_forward(*_grouped(*arguments))


def _triton_backward(*arguments: Any) -> tuple[Tensor, ...]:
    from d2ls_fast.kernels import segmentation_loss as kernel

    return kernel.segmentation_backward(*_grouped(*arguments[:-3]), *arguments[-3:])


def _grouped(*arguments: Any) -> tuple[Any, Any]:
    """The operator's arguments as the launchers take them: (inputs of classify, labels)."""
    from d2ls_fast.kernels import classify, segmentation_loss

    return classify.Inputs(*arguments[:4], *arguments[8:]), segmentation_loss.Labels(*arguments[4:8])


def _where_it_fits(kernel: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """The Triton kernel, or plain PyTorch for shapes it does not take (a forced back end refuses those instead)."""

    def either(*arguments: Any) -> Any:
        from d2ls_fast.kernels.segmentation_loss import why_not

        return (plain if why_not(arguments[0], arguments[3]) else kernel)(*arguments)

    return either


def _register(suffix: str, cpu: tuple[Any, Any], cuda: tuple[Any, Any]) -> None:
    """The operator and its backward operator: two kernels (or Nones) for each device."""
    name = f"segmentation_sums{suffix}"
    define(
        name,
        f"({_ARGUMENTS}) -> (Tensor cross_entropy, Tensor overlap, Tensor volume, Tensor count)",
        fake=_fake,
        cpu=cpu[0],
        cuda=cuda[0],
    )
    define(
        f"{name}_backward",
        f"({_ARGUMENTS}, Tensor grad_cross_entropy, Tensor grad_overlap, Tensor grad_volume)"
        " -> (Tensor grad_pixels, Tensor grad_norm_weight, Tensor grad_norm_bias, Tensor grad_hyper)",
        fake=_fake_backward,
        cpu=cpu[1],
        cuda=cuda[1],
    )
    backward_operator = getattr(torch.ops.d2ls_fast, f"{name}_backward")

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        of_sums = gradients[:3]  # the fourth, of count, is a constant
        results = backward_operator(*ctx.saved_tensors, *ctx.options, *of_sums)
        return (*results, *(None,) * (_TENSORS - 4 + len(ctx.options)))

    torch.library.register_autograd(f"d2ls_fast::{name}", backward, setup_context=_setup_context, lib=LIBRARY)


_PLAIN = (segmentation_sums_definition, plain_backward)
_TRITON = (_triton_forward, _triton_backward)
_GPU: tuple[Any, Any] = _PLAIN
if importlib.util.find_spec("triton") is not None:
    _GPU = (
        _where_it_fits(_triton_forward, segmentation_sums_definition),
        _where_it_fits(_triton_backward, plain_backward),
    )

_register("", cpu=(None, None) if _extension.LOADED else _PLAIN, cuda=_GPU)
_register("_triton", cpu=_TRITON, cuda=_TRITON)
_register("_cuda", cpu=(None, None), cuda=(_cuda.segmentation_sums, _cuda.segmentation_sums_backward))
