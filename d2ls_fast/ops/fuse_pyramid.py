"""fuse_pyramid: the maps of all levels become one pixel-major map at the size of the finest."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from d2ls_fast import _extension
from d2ls_fast.backends import select
from d2ls_fast.ops._library import LIBRARY, define, with_autocast


def fuse_pyramid(features: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    r"""Multiply every level by its matrix at its own size, upsample to the finest, add.

    .. math:: x = \sum_i \mathrm{up}(A_i f_i + b_i)

    Upsampling is bilinear, as ``torch.nn.functional.interpolate(size=..., align_corners=False)`` computes it. With
    :math:`A_i = W_i \, \mathrm{Linear}_i` this is the neck that projects, upsamples, concatenates and fuses, because a
    1x1 product commutes with the upsampling; and as the weights of the upsampling add up to one, so do the biases.

    Args:
        features: f, maps ``[B, c_i, h_i, w_i]``, finest first, any number from 1, of any sizes; contiguous,
            channels-last or otherwise strided; float32, bfloat16, float16 (kernels) or float64 (PyTorch).
        weights: A, ``[C, c_i]`` for every map, in their dtype.
        biases: b, ``[C]`` for every map, any float dtype; added in float32 (float64).

    Returns:
        x ``[B, h_0 * w_0, C]``, pixel-major, in the dtype of features. Products and sums run in float32. Under autocast
        features and weights are first cast to its dtype.

    Raises:
        ValueError: numbers, shapes, dtypes or devices do not fit; the message names the argument.
        BackendError: a forced back end cannot serve the call.

    Differentiable once in every tensor. Bitwise repeatable. Besides the result nothing of the finest size is formed.

    Source: the neck of the D2LS decoder (arXiv 2503.06683), with its two 1x1 convolutions composed.
    """
    check_fuse_pyramid(features, weights, biases)
    cast = with_autocast((*features, *weights))
    features, weights = cast[: len(features)], cast[len(features) :]
    _check_kind(features, weights)
    accumulate = torch.promote_types(features[0].dtype, torch.float32)
    bias = reduce(torch.add, (b.to(accumulate) for b in biases))
    name = select("fuse_pyramid", weights[0].transpose(0, 1))
    if name in ("reference", "torch"):
        return fuse_pyramid_definition(features, weights, bias)
    operator = torch.ops.d2ls_fast.fuse_pyramid_triton if name == "triton" else torch.ops.d2ls_fast.fuse_pyramid
    fused: Tensor = operator(features, weights, bias)
    return fused


def fuse_pyramid_definition(features: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> Tensor:
    """The operator in plain PyTorch: every product at its level's own size, in the dtype of features."""
    fused: Tensor | None = None
    for feature, weight in zip(features, weights, strict=True):
        product = F.linear(feature.permute(0, 2, 3, 1), weight, bias.to(weight.dtype) if fused is None else None)
        level = upsample(product.permute(0, 3, 1, 2), features[0].shape[-2:])
        fused = level if fused is None else fused + level
    assert fused is not None
    return fused.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def upsample(level: Tensor, size: torch.Size) -> Tensor:
    """Bilinear, ``align_corners=False``; a map of the size already is left alone."""
    if level.shape[-2:] == size:
        return level
    return F.interpolate(level, size=size, mode="bilinear", align_corners=False)


def plain_backward(
    grad_fused: Tensor, features: Sequence[Tensor], weights: Sequence[Tensor], need_features: bool
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The backward formulas in PyTorch, for machines without the compiled extension.

    The adjoint of the upsampling is two products with its matrices, which unlike scattered sums are repeatable.
    """
    dtype = torch.promote_types(grad_fused.dtype, torch.float32)
    size = features[0].shape[-2:]
    image = grad_fused.to(dtype).unflatten(1, size)  # [B, h, w, C]
    grad_features, grad_weights = [], []
    for feature, weight in zip(features, weights, strict=True):
        grad = image
        if feature.shape[-2:] != size:
            rows, columns = (_upsampling_matrix(c, f, image) for c, f in zip(feature.shape[-2:], size, strict=True))
            grad = (rows @ grad.flatten(2)).unflatten(2, grad.shape[2:])
            grad = columns @ grad
        grad = grad.flatten(1, 2)  # [B, n, C]
        if need_features:
            grad_feature = (grad @ weight.to(dtype)).to(feature.dtype).unflatten(1, feature.shape[-2:])
            grad_features.append(_empty_like_map(feature).copy_(grad_feature.permute(0, 3, 1, 2)))
        grad_weights.append((feature.flatten(2).to(dtype) @ grad).sum(0).t().to(weight.dtype).contiguous())
    return grad_features, grad_weights, image.sum((0, 1, 2))


def check_fuse_pyramid(features: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    """Raise ``ValueError`` unless numbers, shapes and devices fit each other; see :func:`fuse_pyramid`."""
    if not features:
        raise ValueError("fuse_pyramid: features must hold at least one map")
    for name, tensors in (("weights", weights), ("biases", biases)):
        if len(tensors) != len(features):
            raise ValueError(f"fuse_pyramid: {name} must hold one for each of {len(features)} maps, got {len(tensors)}")
    for i, feature in enumerate(features):
        if feature.dim() != 4 or 0 in feature.shape:
            raise ValueError(
                f"fuse_pyramid: features[{i}] must be [B, c, h, w] and not empty, got {tuple(feature.shape)}"
            )
        if feature.shape[0] != features[0].shape[0]:
            raise ValueError(
                f"fuse_pyramid: features[{i}] must hold {features[0].shape[0]} images, as features[0] does, "
                f"got {feature.shape[0]}"
            )
    channels = weights[0].shape[0]
    for i, (feature, weight, bias) in enumerate(zip(features, weights, biases, strict=True)):
        if channels == 0 or weight.shape != (channels, feature.shape[1]):
            raise ValueError(
                f"fuse_pyramid: weights[{i}] must be [{channels or 'C'}, {feature.shape[1]}], got {tuple(weight.shape)}"
            )
        if bias.shape != (channels,):
            raise ValueError(f"fuse_pyramid: biases[{i}] must be [{channels}], got {tuple(bias.shape)}")
        for name, tensor in (("features", feature), ("weights", weight), ("biases", bias)):
            if tensor.device != features[0].device:
                raise ValueError(
                    f"fuse_pyramid: {name}[{i}] must be on the device of features[0], {features[0].device}, "
                    f"got {tensor.device}"
                )


def _check_kind(features: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    dtype = features[0].dtype
    if not dtype.is_floating_point:
        raise ValueError(f"fuse_pyramid: features must be floating-point tensors, got {dtype}")
    for name, tensors in (("features", features), ("weights", weights)):
        for i, tensor in enumerate(tensors):
            if tensor.dtype != dtype:
                raise ValueError(
                    f"fuse_pyramid: {name}[{i}] must have the dtype of features[0], {dtype}, got {tensor.dtype}"
                )


def _upsampling_matrix(coarse: int, fine: int, like: Tensor) -> Tensor:
    """``[coarse, fine]``: the weight that every fine position gives to every coarse one."""
    identity = torch.eye(coarse, dtype=like.dtype, device=like.device).unsqueeze(0)
    return F.interpolate(identity, size=fine, mode="linear", align_corners=False)[0]


def _empty_like_map(feature: Tensor) -> Tensor:
    """For the gradient of a map: channels-last where its channels are neighbours, otherwise contiguous."""
    b, c, h, w = feature.shape
    if feature.stride(1) == 1:
        return feature.new_empty((b, h, w, c)).permute(0, 3, 1, 2)
    return feature.new_empty((b, c, h, w))


# --- registration -------------------------------------------------------------------------------------------------

_FORWARD = "(Tensor[] features, Tensor[] weights, Tensor bias) -> Tensor"
_BACKWARD = (
    "(Tensor grad_fused, Tensor[] features, Tensor[] weights, bool need_features) -> (Tensor[], Tensor[], Tensor)"
)


def _fake_forward(features: list[Tensor], weights: list[Tensor], bias: Tensor) -> Tensor:
    b, _, h, w = features[0].shape
    return features[0].new_empty((b, h * w, weights[0].shape[0]))


def _fake_backward(
    grad_fused: Tensor, features: list[Tensor], weights: list[Tensor], need_features: bool
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    dtype = torch.promote_types(grad_fused.dtype, torch.float32)
    grad_features = [_empty_like_map(feature) for feature in features] if need_features else []
    grad_weights = [weight.new_empty(weight.shape) for weight in weights]
    return grad_features, grad_weights, grad_fused.new_empty((grad_fused.shape[-1],), dtype=dtype)


def _triton_forward(features: list[Tensor], weights: list[Tensor], bias: Tensor) -> Tensor:
    from d2ls_fast.kernels import fuse_pyramid as kernel  # imported at the first call: it imports triton

    return kernel.fuse_pyramid_forward(features, weights, bias)


def _triton_backward(
    grad_fused: Tensor, features: list[Tensor], weights: list[Tensor], need_features: bool
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    from d2ls_fast.kernels import fuse_pyramid as kernel

    grad_features, grad_weights, grad_bias = kernel.fuse_pyramid_backward(grad_fused, features, weights, need_features)
    # The layout that the other kernels give: channels-last where the map is.
    grad_features = [_empty_like_map(f).copy_(g) for f, g in zip(features, grad_features, strict=False)]
    return grad_features, grad_weights, grad_bias


def _setup_context(ctx: Any, inputs: tuple[list[Tensor], list[Tensor], Tensor], output: Tensor) -> None:
    features, weights, _ = inputs
    ctx.levels = len(features)
    ctx.save_for_backward(*features, *weights)


def _register(name: str, cpu: tuple[Any, Any], cuda: tuple[Any, Any]) -> None:
    """The operator with its backward operator: ``cpu`` and ``cuda`` are (forward, backward) kernels or Nones."""
    define(name, _FORWARD, fake=_fake_forward, cpu=cpu[0], cuda=cuda[0])
    define(f"{name}_backward", _BACKWARD, fake=_fake_backward, cpu=cpu[1], cuda=cuda[1])
    backward_operator = getattr(torch.ops.d2ls_fast, f"{name}_backward")

    def backward(ctx: Any, grad_fused: Tensor) -> tuple[list[Tensor | None], list[Tensor], Tensor]:
        features, weights = ctx.saved_tensors[: ctx.levels], ctx.saved_tensors[ctx.levels :]
        need_features = any(ctx.needs_input_grad[0])
        grad_features, grad_weights, grad_bias = backward_operator(
            grad_fused, list(features), list(weights), need_features
        )
        return grad_features if need_features else [None] * ctx.levels, grad_weights, grad_bias

    torch.library.register_autograd(f"d2ls_fast::{name}", backward, setup_context=_setup_context, lib=LIBRARY)


_PLAIN = (fuse_pyramid_definition, plain_backward)
_TRITON = (_triton_forward, _triton_backward)
_GPU = _TRITON if importlib.util.find_spec("triton") is not None else _PLAIN

_register("fuse_pyramid", cpu=(None, None) if _extension.LOADED else _PLAIN, cuda=_GPU)
_register("fuse_pyramid_triton", cpu=_TRITON, cuda=_TRITON)
