"""What dictionary_step computes, in plain PyTorch: its definition and its backward formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dictionary_step_definition(
    dictionary: Tensor,
    position: Tensor,
    context: Tensor | None,
    update: list[Tensor],
    entries: list[Tensor],
    look: list[Tensor],
    num_heads: int,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator in plain PyTorch; an absent part is an empty list, and what it would give an empty tensor."""
    fold = folding_dtype(dtype, dictionary.device)
    query, key, value = (dictionary.new_empty((0,), dtype=dtype) for _ in range(3))
    key_bias = dictionary.new_empty((0,), dtype=torch.promote_types(dtype, torch.float32))
    with torch.autocast(dictionary.device.type, enabled=False):
        entry = dictionary.to(fold)
        if context is not None:
            value_weight, value_bias, out_weight, out_bias, norm_weight, norm_bias = (p.to(fold) for p in update)
            mean = context.to(fold).unflatten(1, (num_heads, -1))
            mixed = torch.einsum("bhkc,hdc->bkhd", mean, _by_head(value_weight, num_heads)).flatten(2) + value_bias
            total = entry + F.linear(mixed, out_weight, out_bias)
            entry = F.layer_norm(total, total.shape[-1:], norm_weight, norm_bias, eps)
        placed = entry + position.to(fold)
        if entries:
            query_weight, query_bias, key_weight, bias, value_weight, value_bias, out_weight = (
                p.to(fold) for p in entries
            )
            keys = _projected(placed, key_weight, bias, num_heads, scaled=True)
            values = _projected(entry, value_weight, value_bias, num_heads, scaled=False)
            key = _folded(keys, query_weight).to(dtype)
            key_bias = torch.einsum("bhkd,hd->bhk", keys, _by_head(query_bias, num_heads)).flatten(1).to(key_bias.dtype)
            value = _folded(values, out_weight.t()).to(dtype)
        if look:
            query_weight, query_bias, key_weight, bias = (p.to(fold) for p in look)
            # The key bias has no influence, but DDP wants a gradient for every parameter: a zero one.
            queries = _projected(placed, query_weight, query_bias + 0.0 * bias, num_heads, scaled=True)
            query = _folded(queries, key_weight).to(dtype)
    return entry.to(dictionary.dtype) if update else dictionary.new_empty((0,)), query, key, key_bias, value


def folding_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """One precision above the pixels': what is folded is rounded only once, when it meets them.

    Two chained products in float32 would double the error of the scores, and the dictionary is so small that float64
    costs nothing.
    """
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) or device.type == "mps" else torch.float64


def _by_head(parameter: Tensor, num_heads: int) -> Tensor:
    """``[H * d, ...]`` -> ``[H, d, ...]``."""
    return parameter.unflatten(0, (num_heads, -1))


def _projected(tokens: Tensor, weight: Tensor, bias: Tensor, num_heads: int, scaled: bool) -> Tensor:
    """``[B, K, C]`` -> ``[B, H, K, d]``, divided by the root of d where it becomes one side of a score."""
    rows = F.linear(tokens, weight, bias).unflatten(-1, (num_heads, -1)).transpose(1, 2)
    return rows * rows.shape[-1] ** -0.5 if scaled else rows


def _folded(rows: Tensor, weight: Tensor) -> Tensor:
    """Rows ``[B, H, K, d]`` times each head's part of a weight ``[H * d, C]``: ``[B, H * K, C]``."""
    return torch.einsum("bhkd,hdc->bhkc", rows, _by_head(weight, rows.shape[1])).flatten(1, 2).contiguous()


def plain_backward(
    dictionary: Tensor,
    position: Tensor,
    context: Tensor | None,
    update: list[Tensor],
    entries: list[Tensor],
    look: list[Tensor],
    grad_dictionary: Tensor,
    grad_query: Tensor,
    grad_key: Tensor,
    grad_key_bias: Tensor,
    grad_value: Tensor,
    num_heads: int,
    eps: float,
) -> list[Tensor]:
    """The backward formulas in PyTorch, for machines without a kernel; recomputes the forward.

    Returns:
        gradients of dictionary, position, context, update, entries and look, those of absent parts left out; the key
        bias of look, which has no influence, has none.
    """
    fold = folding_dtype(grad_query.dtype, dictionary.device)
    entry, mixed = dictionary.to(fold), dictionary.to(fold)
    mean = normal = inverse_sigma = entry
    if context is not None:
        value_weight, value_bias, out_weight, out_bias, norm_weight, norm_bias = (p.to(fold) for p in update)
        mean = context.to(fold).unflatten(1, (num_heads, -1))
        mixed = torch.einsum("bhkc,hdc->bkhd", mean, _by_head(value_weight, num_heads)).flatten(2) + value_bias
        total = entry + F.linear(mixed, out_weight, out_bias)
        inverse_sigma = torch.rsqrt(total.var(-1, correction=0, keepdim=True) + eps)
        normal = (total - total.mean(-1, keepdim=True)) * inverse_sigma
        entry = normal * norm_weight + norm_bias
    placed = entry + position.to(fold)
    to_placed, to_entry = torch.zeros_like(placed), torch.zeros_like(placed)
    of_entries: list[Tensor] = []
    of_look: list[Tensor] = []
    if entries:
        q_weight, q_bias, k_weight, k_bias, v_weight, v_bias, out = (p.to(fold) for p in entries)
        grad_bias = grad_key_bias.to(fold)
        through, *of_key = _unfolded(placed, k_weight, k_bias, q_weight, q_bias, grad_key, grad_bias, num_heads, True)
        to_entry, *of_value = _unfolded(entry, v_weight, v_bias, out.t(), None, grad_value, None, num_heads, False)
        to_placed = to_placed + through
        of_entries = [of_key[2], of_key[3], of_key[0], of_key[1], of_value[0], of_value[1], of_value[2].t()]
    if look:
        q_weight, q_bias, k_weight, _ = (p.to(fold) for p in look)
        through, *of_look = _unfolded(placed, q_weight, q_bias, k_weight, None, grad_query, None, num_heads, True)
        to_placed, of_look = to_placed + through, of_look[:3]
    grad = to_placed + to_entry
    of_update: list[Tensor] = []
    if context is not None:
        grad = grad + grad_dictionary.to(fold)
        of_norm = [(grad * normal).sum((0, 1)), grad.sum((0, 1))]
        scaled = grad * norm_weight
        tilt = (scaled * normal).mean(-1, keepdim=True)
        grad = inverse_sigma * (scaled - scaled.mean(-1, keepdim=True) - normal * tilt)
        to_mixed = grad @ out_weight
        by_head = to_mixed.unflatten(-1, (num_heads, -1))
        of_update = [
            torch.einsum("bkhd,hdc->bhkc", by_head, _by_head(value_weight, num_heads)).flatten(1, 2),
            torch.einsum("bkhd,bhkc->hdc", by_head, mean).flatten(0, 1),
            to_mixed.sum((0, 1)),
            torch.einsum("bkc,bki->ci", grad, mixed),
            grad.sum((0, 1)),
            *of_norm,
        ]
    tokens = [grad, to_placed]
    inputs = [dictionary, position, *([] if context is None else [context]), *update, *entries, *look[:3]]
    gradients = [*tokens, *of_update, *of_entries, *of_look]
    return [g.to(t.dtype).contiguous() for g, t in zip(gradients, inputs, strict=True)]


def _unfolded(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    folding: Tensor,
    folding_bias: Tensor | None,
    grad_rows: Tensor,
    grad_bias: Tensor | None,
    num_heads: int,
    scaled: bool,
) -> list[Tensor]:
    """Gradients of tokens, weight, bias, folding and folding_bias (or nothing) for those of the folded rows.

    The rows are ``_folded(_projected(tokens, weight, bias), folding)``, and their bias the projected rows times
    ``folding_bias``.
    """
    rows = _projected(tokens, weight, bias, num_heads, scaled)
    grad = grad_rows.to(rows.dtype).unflatten(1, (num_heads, -1))
    of_rows = torch.einsum("bhkc,hdc->bhkd", grad, _by_head(folding, num_heads))
    of_folding_bias = rows.new_empty((0,))
    if folding_bias is not None and grad_bias is not None:
        grad_bias = grad_bias.unflatten(1, (num_heads, -1))
        of_rows = of_rows + torch.einsum("bhk,hd->bhkd", grad_bias, _by_head(folding_bias, num_heads))
        of_folding_bias = torch.einsum("bhk,bhkd->hd", grad_bias, rows).flatten()
    of_folding = torch.einsum("bhkd,bhkc->hdc", rows, grad).flatten(0, 1)
    projected = of_rows.transpose(1, 2).flatten(2)
    projected = projected * rows.shape[-1] ** -0.5 if scaled else projected
    of_weight = torch.einsum("bki,bkc->ic", projected, tokens)
    return [projected @ weight, of_weight, projected.sum((0, 1)), of_folding, of_folding_bias]
