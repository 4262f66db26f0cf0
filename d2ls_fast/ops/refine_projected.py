"""refine_projected: every pixel looks at the dictionary; its projections are computed on the way."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from d2ls_fast import _extension
from d2ls_fast.backends import select
from d2ls_fast.ops._library import LIBRARY, define, with_autocast
from d2ls_fast.ops.attend import check_pixels
from d2ls_fast.ops.attend_projected import (
    check_entries,
    check_parameters,
    gradient_of_pe,
    merge_heads,
    split_heads,
)
from d2ls_fast.ops.refine import as_vectors


def refine_projected(
    pixels: Tensor,
    pixel_pe: Tensor,
    key: Tensor,
    value: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    num_heads: int,
    eps: float = 1e-5,
) -> Tensor:
    r"""Pixels updated by the dictionary; query and output projections of a tile of pixels stay in the cache.

    .. math::
        z_{nhk} = k_{hk} \cdot (W_{Q,h} (x_n + p_n) + b_{Q,h}), \quad
        x'_n = \mathrm{LN}\Big(x_n + W_O \big[\sum_k \mathrm{softmax}_k(z_{nhk}) \, v_{hk}\big]_h + b_O\Big)

    The same update as :func:`~d2ls_fast.ops.refine.refine` with folded projections, for many entries K: there a pixel
    costs 2 H K C multiply-adds, here 2 C D + 2 K D.

    Args:
        pixels: x, ``[B, N, C]``, float32, bfloat16, float16 (kernels) or float64 (plain PyTorch).
        pixel_pe: p, ``[N, C]`` or ``[B, N, C]``; same dtype.
        key: k, projected and divided by the square root of D / H: ``[G * B, K, D]``; row ``g * B + b`` belongs to image
            b. Any float dtype, as everything that follows.
        value: v, projected, ``[G * B, K, D]``.
        query_weight, query_bias: W_Q ``[D, C]`` and b_Q ``[D]``, as a Linear stores them.
        out_weight, out_bias: W_O ``[C, D]`` and b_O ``[C]``.
        norm_weight, norm_bias: of the LayerNorm, ``[C]``.
        num_heads: H, a divisor of D.
        eps: added to the variance.

    Returns:
        the updated pixels, ``[G * B, N, C]`` in the dtype of pixels. The kernels compute in float32 throughout.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; the message names the argument.
        BackendError: a forced back end cannot serve the call.

    Differentiable once in every tensor. On the CPU nothing of size ``N x D`` or ``N x K`` is stored and results are
    bitwise repeatable; elsewhere PyTorch's scaled_dot_product_attention runs on the projected pixels.

    Source: the D2LS interaction (arXiv 2503.06683).
    """
    pixels, pixel_pe = with_autocast((pixels, pixel_pe))
    wide = (key, value, query_weight, query_bias, out_weight, out_bias, norm_weight, norm_bias)
    arguments = (pixels, pixel_pe, *as_vectors(pixels, *wide), num_heads)
    check_refine_projected(*arguments)
    name = select("refine_projected", pixels)
    if name == "reference":
        return refine_projected_definition(*arguments, eps)
    if name == "torch":
        return refine_projected_sdpa(*arguments, eps)
    refined: Tensor = torch.ops.d2ls_fast.refine_projected(*arguments, eps)
    return refined


def refine_projected_definition(
    pixels: Tensor,
    pixel_pe: Tensor,
    key: Tensor,
    value: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    num_heads: int,
    eps: float,
) -> Tensor:
    """The operator in plain PyTorch: products in the dtype of pixels, softmax and norm in float32 (float64)."""
    q, k, v = _projected(pixels, pixel_pe, key, value, query_weight, query_bias, num_heads)
    weights = (q @ k.transpose(-1, -2)).to(key.dtype).softmax(-1)
    mixed = merge_heads(weights.to(pixels.dtype) @ v)
    return _normalised(pixels, mixed, out_weight, out_bias, norm_weight, norm_bias, eps)


def refine_projected_sdpa(
    pixels: Tensor,
    pixel_pe: Tensor,
    key: Tensor,
    value: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    num_heads: int,
    eps: float,
) -> Tensor:
    """The same with PyTorch's attention kernel, whose flash form stores no scores: the form for GPUs."""
    q, k, v = _projected(pixels, pixel_pe, key, value, query_weight, query_bias, num_heads)
    mixed = merge_heads(F.scaled_dot_product_attention(q, k, v, scale=1.0))
    return _normalised(pixels, mixed, out_weight, out_bias, norm_weight, norm_bias, eps)


def plain_backward(
    pixels: Tensor,
    pixel_pe: Tensor,
    key: Tensor,
    value: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    grad_refined: Tensor,
    num_heads: int,
    eps: float,
    need_pe_grad: bool,
) -> tuple[Tensor, ...]:
    """The backward formulas in PyTorch, in the precision of the weights; recomputes the forward."""
    dtype, images = key.dtype, pixels.shape[0]
    x, y = pixels.to(dtype), (pixels + pixel_pe).to(dtype)
    groups = key.shape[0] // images
    q = split_heads(F.linear(y, query_weight, query_bias), num_heads).repeat(groups, 1, 1, 1)
    k, v = split_heads(key, num_heads), split_heads(value, num_heads)
    weights = (q @ k.transpose(-1, -2)).softmax(-1)
    mixed = merge_heads(weights @ v)
    total = x.repeat(groups, 1, 1) + F.linear(mixed, out_weight, out_bias)
    inverse_sigma = torch.rsqrt(total.var(-1, correction=0, keepdim=True) + eps)
    normal = (total - total.mean(-1, keepdim=True)) * inverse_sigma
    grad = grad_refined.to(dtype)
    grad_norm_weight, grad_norm_bias = (grad * normal).sum((0, 1)), grad.sum((0, 1))
    scaled = grad * norm_weight
    grad = inverse_sigma * (scaled - scaled.mean(-1, keepdim=True) - normal * (scaled * normal).mean(-1, keepdim=True))
    grad_mixed = split_heads(grad @ out_weight, num_heads)
    grad_weights = grad_mixed @ v.transpose(-1, -2)
    grad_scores = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True))
    grad_query = _sum_groups(merge_heads(grad_scores @ k), images)
    through_pe = grad_query @ query_weight
    return (
        (_sum_groups(grad, images) + through_pe).to(pixels.dtype),
        gradient_of_pe(through_pe, pixel_pe, need_pe_grad),
        merge_heads(grad_scores.transpose(-1, -2) @ q),
        merge_heads(weights.transpose(-1, -2) @ grad_mixed),
        torch.einsum("bnd,bnc->dc", grad_query, y),
        grad_query.sum((0, 1)),
        torch.einsum("bnc,bnd->cd", grad, mixed),
        grad.sum((0, 1)),
        grad_norm_weight,
        grad_norm_bias,
    )


def check_refine_projected(
    pixels: Tensor,
    pixel_pe: Tensor,
    key: Tensor,
    value: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    num_heads: int,
) -> None:
    """Raise ``ValueError`` unless the arguments fit each other; see :func:`refine_projected`."""
    check_pixels("refine_projected", pixels, pixel_pe)
    check_entries("refine_projected", "key", key, pixels, num_heads)
    d, c = key.shape[2], pixels.shape[2]
    check_parameters(
        "refine_projected",
        pixels,
        value=(value, tuple(key.shape)),
        query_weight=(query_weight, (d, c)),
        query_bias=(query_bias, (d,)),
        out_weight=(out_weight, (c, d)),
        out_bias=(out_bias, (c,)),
        norm_weight=(norm_weight, (c,)),
        norm_bias=(norm_bias, (c,)),
    )


def _projected(
    pixels: Tensor,
    pixel_pe: Tensor,
    key: Tensor,
    value: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    num_heads: int,
) -> list[Tensor]:
    """Queries of the pixels, once for every group, and the dictionary's keys and values, by head."""
    dtype = pixels.dtype
    query = F.linear(pixels + pixel_pe, query_weight.to(dtype), query_bias.to(dtype))
    query = query.repeat(key.shape[0] // pixels.shape[0], 1, 1)
    return [split_heads(t, num_heads) for t in (query, key.to(dtype), value.to(dtype))]


def _normalised(
    pixels: Tensor,
    mixed: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> Tensor:
    dtype = pixels.dtype
    update = F.linear(mixed.to(dtype), out_weight.to(dtype), out_bias.to(dtype))
    total = (pixels + update.unflatten(0, (-1, pixels.shape[0]))).flatten(0, 1).to(norm_weight.dtype)
    return F.layer_norm(total, total.shape[-1:], norm_weight, norm_bias, eps).to(dtype)


def _sum_groups(gradient: Tensor, images: int) -> Tensor:
    return gradient.unflatten(0, (-1, images)).sum(0)


# --- registration -------------------------------------------------------------------------------------------------

_TENSORS = (
    "Tensor pixels, Tensor pixel_pe, Tensor key, Tensor value, Tensor query_weight, Tensor query_bias,"
    " Tensor out_weight, Tensor out_bias, Tensor norm_weight, Tensor norm_bias"
)
_COUNT = 10


def _fake_forward(*arguments: Any) -> Tensor:
    check_refine_projected(*arguments[: _COUNT + 1])
    pixels, key = arguments[0], arguments[2]
    refined: Tensor = pixels.new_empty((key.shape[0], *pixels.shape[1:]))
    return refined


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    gradients = [t.new_empty(t.shape) for t in arguments[:_COUNT]]
    if not arguments[-1]:
        gradients[1] = gradients[1].new_empty((0,))
    return tuple(gradients)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.num_heads, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    need_pe_grad = ctx.needs_input_grad[1]
    gradients = list(
        torch.ops.d2ls_fast.refine_projected_backward(*ctx.saved_tensors, grad, ctx.num_heads, ctx.eps, need_pe_grad)
    )
    if not need_pe_grad:
        gradients[1] = None
    return (*gradients, None, None)


_plain: tuple[Any, ...] = (refine_projected_definition, plain_backward)
_cpu = (None, None) if _extension.LOADED else _plain

define(
    "refine_projected",
    f"({_TENSORS}, int num_heads, float eps) -> Tensor",
    fake=_fake_forward,
    cpu=_cpu[0],
    cuda=_plain[0],
)
define(
    "refine_projected_backward",
    f"({_TENSORS}, Tensor grad_refined, int num_heads, float eps, bool need_pe_grad)"
    f" -> ({', '.join(['Tensor'] * _COUNT)})",
    fake=_fake_backward,
    cpu=_cpu[1],
    cuda=_plain[1],
)
torch.library.register_autograd("d2ls_fast::refine_projected", _backward, setup_context=_setup_context, lib=LIBRARY)
