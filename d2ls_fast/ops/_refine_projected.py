"""refine_projected in plain PyTorch, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from d2ls_fast.ops.attend_projected import gradient_of_pe, merge_heads, split_heads


def attention_definition(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention ``[B, H, N, d]`` whose key carries the scale; softmax in float32 (float64)."""
    scores = query @ key.transpose(-1, -2)
    return scores.to(torch.promote_types(query.dtype, torch.float32)).softmax(-1).to(value.dtype) @ value


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same with PyTorch's attention kernel, whose flash form stores no scores: the form for GPUs."""
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)


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
    *,
    attention: Callable[[Tensor, Tensor, Tensor], Tensor] = attention_definition,
) -> Tensor:
    """The operator in plain PyTorch: products in the dtype of pixels, softmax and norm in float32 (float64)."""
    dtype, images = pixels.dtype, pixels.shape[0]
    query = F.linear(pixels + pixel_pe, query_weight.to(dtype), query_bias.to(dtype))
    query = query.repeat(key.shape[0] // images, 1, 1)
    q, k, v = (split_heads(t, num_heads) for t in (query, key.to(dtype), value.to(dtype)))
    update = F.linear(merge_heads(attention(q, k, v)), out_weight.to(dtype), out_bias.to(dtype))
    total = (pixels + update.unflatten(0, (-1, images))).flatten(0, 1).to(norm_weight.dtype)
    return F.layer_norm(total, total.shape[-1:], norm_weight, norm_bias, eps).to(dtype)


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


def _sum_groups(gradient: Tensor, images: int) -> Tensor:
    return gradient.unflatten(0, (-1, images)).sum(0)
