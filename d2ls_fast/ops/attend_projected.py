"""attend_projected: the dictionary looks at the pixels, which are projected on the way (dictionary <- pixels)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from d2ls_fast import _extension
from d2ls_fast.backends import select
from d2ls_fast.ops._library import LIBRARY, define, with_autocast
from d2ls_fast.ops.attend import check_pixels
from d2ls_fast.ops.refine import as_vectors


def attend_projected(
    pixels: Tensor,
    pixel_pe: Tensor,
    query: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    num_heads: int,
) -> Tensor:
    r"""Multi-head attention of every dictionary entry to all pixels, keys and values projected tile by tile.

    .. math::
        s_{hkn} = q_{hk} \cdot W_{K,h} (x_n + p_n), \quad
        o_{hk} = \sum_n \mathrm{softmax}_n(s_{hkn}) \, W_{V,h} x_n

    The same attention as :func:`~d2ls_fast.ops.attend.attend` with folded projections, for many entries K: there a
    pixel costs 2 H K C multiply-adds, here 2 C D + 2 K D. A bias of the keys is the same for all pixels, so the softmax
    removes it; a bias of the values adds to the result. Both are therefore left to the caller.

    Args:
        pixels: x, ``[B, N, C]``, float32, bfloat16, float16 (kernels) or float64 (plain PyTorch).
        pixel_pe: p, positional encoding ``[N, C]`` shared by the batch, or ``[B, N, C]``; same dtype.
        query: q, projected and divided by the square root of D / H: ``[G * B, K, D]``; row ``g * B + b`` looks at image
            b. Any float dtype, as the weights.
        key_weight, value_weight: W_K and W_V as a Linear stores them, ``[D, C]``; rows of head h are consecutive.
        num_heads: H, a divisor of D.

    Returns:
        o ``[G * B, K, D]``, float32 (float64 for float64 inputs). The kernels compute in float32 throughout.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; the message names the argument.
        BackendError: a forced back end cannot serve the call.

    Differentiable once in every tensor. On the CPU nothing of size ``N x D`` or ``N x K`` is stored and results are
    bitwise repeatable; elsewhere PyTorch's scaled_dot_product_attention runs on the projected pixels.

    Source: the D2LS interaction (arXiv 2503.06683).
    """
    pixels, pixel_pe = with_autocast((pixels, pixel_pe))
    query, key_weight, value_weight = as_vectors(pixels, query, key_weight, value_weight)
    check_attend_projected(pixels, pixel_pe, query, key_weight, value_weight, num_heads)
    images = pixels.shape[0]
    # The groups of an image are only more entries to it.
    rows = query.reshape(-1, images, *query.shape[1:]).transpose(0, 1).flatten(1, 2)
    arguments = (pixels, pixel_pe, rows, key_weight, value_weight, num_heads)
    name = select("attend_projected", pixels)
    if name == "reference":
        mixed, _ = attend_projected_definition(*arguments)
    elif name == "torch":
        mixed = attend_projected_sdpa(*arguments)
    else:
        mixed, _ = torch.ops.d2ls_fast.attend_projected(*arguments)
    return mixed.reshape(images, -1, *query.shape[1:]).transpose(0, 1).flatten(0, 1)


def attend_projected_definition(
    pixels: Tensor, pixel_pe: Tensor, query: Tensor, key_weight: Tensor, value_weight: Tensor, num_heads: int
) -> tuple[Tensor, Tensor]:
    """The operator in plain PyTorch: o ``[B, K, D]`` and the log-sum-exp of the scores ``[B, H, K]``.

    Products run in the dtype of pixels, as the unfused model's do; softmax and log-sum-exp in float32 (float64).
    """
    q, key, value = _projected(pixels, pixel_pe, query, key_weight, value_weight, num_heads)
    scores = (q @ key.transpose(-1, -2)).to(query.dtype)
    log_sum_exp = scores.logsumexp(dim=-1)
    weights = torch.exp(scores - log_sum_exp.unsqueeze(-1))
    return merge_heads(weights.to(pixels.dtype) @ value).to(query.dtype), log_sum_exp


def attend_projected_sdpa(
    pixels: Tensor, pixel_pe: Tensor, query: Tensor, key_weight: Tensor, value_weight: Tensor, num_heads: int
) -> Tensor:
    """The same with PyTorch's attention kernel, whose flash form stores no scores: the form for GPUs."""
    q, key, value = _projected(pixels, pixel_pe, query, key_weight, value_weight, num_heads)
    return merge_heads(F.scaled_dot_product_attention(q, key, value, scale=1.0)).to(query.dtype)


def plain_backward(
    pixels: Tensor,
    pixel_pe: Tensor,
    query: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    mixed: Tensor,
    log_sum_exp: Tensor,
    grad_mixed: Tensor,
    grad_log_sum_exp: Tensor,
    num_heads: int,
    need_pe_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The backward formulas in PyTorch, in the precision of the weights; recomputes the forward."""
    dtype = query.dtype
    x, y = pixels.to(dtype), (pixels + pixel_pe).to(dtype)
    q, o, grad = (split_heads(t, num_heads) for t in (query, mixed, grad_mixed))
    key, value = split_heads(y @ key_weight.t(), num_heads), split_heads(x @ value_weight.t(), num_heads)
    weights = torch.exp(q @ key.transpose(-1, -2) - log_sum_exp.unsqueeze(-1))
    delta = (grad * o).sum(-1) - grad_log_sum_exp
    grad_scores = weights * (grad @ value.transpose(-1, -2) - delta.unsqueeze(-1))
    grad_value = merge_heads(weights.transpose(-1, -2) @ grad)
    grad_key = merge_heads(grad_scores.transpose(-1, -2) @ q)
    through_pe = grad_key @ key_weight
    return (
        (through_pe + grad_value @ value_weight).to(pixels.dtype),
        gradient_of_pe(through_pe, pixel_pe, need_pe_grad),
        merge_heads(grad_scores @ key),
        torch.einsum("bnd,bnc->dc", grad_key, y),
        torch.einsum("bnd,bnc->dc", grad_value, x),
    )


def gradient_of_pe(through_pe: Tensor, pixel_pe: Tensor, needed: bool) -> Tensor:
    """The gradient ``[B, N, C]`` that went through pixels + pixel_pe as that of pixel_pe; empty when not needed."""
    if not needed:
        return pixel_pe.new_empty((0,))
    return (through_pe if pixel_pe.dim() == 3 else through_pe.sum(0)).to(pixel_pe.dtype)


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """``[B, M, H * d]`` -> ``[B, H, M, d]``."""
    return tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(tokens: Tensor) -> Tensor:
    """``[B, H, M, d]`` -> ``[B, M, H * d]``."""
    return tokens.transpose(1, 2).flatten(2)


def check_attend_projected(
    pixels: Tensor, pixel_pe: Tensor, query: Tensor, key_weight: Tensor, value_weight: Tensor, num_heads: int
) -> None:
    """Raise ``ValueError`` unless the arguments fit each other; see :func:`attend_projected`."""
    check_pixels("attend_projected", pixels, pixel_pe)
    check_entries("attend_projected", "query", query, pixels, num_heads)
    shape = (query.shape[2], pixels.shape[2])
    check_parameters("attend_projected", pixels, key_weight=(key_weight, shape), value_weight=(value_weight, shape))


def check_entries(operator: str, name: str, entries: Tensor, pixels: Tensor, num_heads: int) -> None:
    """Raise ``ValueError`` unless ``entries`` is ``[G * B, K, D]`` with D a multiple of num_heads."""
    b = pixels.shape[0]
    if entries.dim() != 3 or 0 in entries.shape or entries.shape[0] % b:
        raise ValueError(f"{operator}: {name} must be [G * {b}, K, D], not empty, got {tuple(entries.shape)}")
    if num_heads < 1 or entries.shape[2] % num_heads:
        raise ValueError(f"{operator}: num_heads must divide the width {entries.shape[2]} of {name}, got {num_heads}")
    if entries.device != pixels.device:
        raise ValueError(f"{operator}: {name} must be on the device of pixels, {pixels.device}, got {entries.device}")


def check_parameters(operator: str, pixels: Tensor, **parameters: tuple[Tensor, tuple[int, ...]]) -> None:
    """Raise ``ValueError`` unless every parameter has its shape and is on the device of pixels."""
    for name, (tensor, shape) in parameters.items():
        if tensor.shape != shape:
            raise ValueError(f"{operator}: {name} must be {list(shape)}, got {tuple(tensor.shape)}")
        if tensor.device != pixels.device:
            raise ValueError(
                f"{operator}: {name} must be on the device of pixels, {pixels.device}, got {tensor.device}"
            )


def _projected(
    pixels: Tensor, pixel_pe: Tensor, query: Tensor, key_weight: Tensor, value_weight: Tensor, num_heads: int
) -> list[Tensor]:
    """Query, keys and values by head, in the dtype of pixels."""
    dtype = pixels.dtype
    key = F.linear(pixels + pixel_pe, key_weight.to(dtype))
    value = F.linear(pixels, value_weight.to(dtype))
    return [split_heads(t, num_heads) for t in (query.to(dtype), key, value)]


# --- registration -------------------------------------------------------------------------------------------------

_TENSORS = "Tensor pixels, Tensor pixel_pe, Tensor query, Tensor key_weight, Tensor value_weight"


def _fake_forward(
    pixels: Tensor, pixel_pe: Tensor, query: Tensor, key_weight: Tensor, value_weight: Tensor, num_heads: int
) -> tuple[Tensor, Tensor]:
    check_attend_projected(pixels, pixel_pe, query, key_weight, value_weight, num_heads)
    return query.new_empty(query.shape), query.new_empty((query.shape[0], num_heads, query.shape[1]))


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    gradients = [t.new_empty(t.shape) for t in arguments[:5]]
    if not arguments[-1]:
        gradients[1] = gradients[1].new_empty((0,))
    return tuple(gradients)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.num_heads = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    need_pe_grad = ctx.needs_input_grad[1]
    gradients = list(
        torch.ops.d2ls_fast.attend_projected_backward(*ctx.saved_tensors, *grads, ctx.num_heads, need_pe_grad)
    )
    if not need_pe_grad:
        gradients[1] = None
    return (*gradients, None)


_plain: tuple[Any, ...] = (attend_projected_definition, plain_backward)
_cpu = (None, None) if _extension.LOADED else _plain

define(
    "attend_projected",
    f"({_TENSORS}, int num_heads) -> (Tensor, Tensor)",
    fake=_fake_forward,
    cpu=_cpu[0],
    cuda=_plain[0],
)
define(
    "attend_projected_backward",
    f"({_TENSORS}, Tensor mixed, Tensor log_sum_exp, Tensor grad_mixed, Tensor grad_log_sum_exp, int num_heads,"
    " bool need_pe_grad) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_fake_backward,
    cpu=_cpu[1],
    cuda=_plain[1],
)
torch.library.register_autograd("d2ls_fast::attend_projected", _backward, setup_context=_setup_context, lib=LIBRARY)
