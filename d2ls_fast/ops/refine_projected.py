"""refine_projected: every pixel looks at the dictionary; its projections are computed on the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from d2ls_fast import _extension
from d2ls_fast.backends import select
from d2ls_fast.ops._library import LIBRARY, define, with_autocast
from d2ls_fast.ops._refine_projected import plain_backward, refine_projected_definition, sdpa
from d2ls_fast.ops.attend import check_pixels
from d2ls_fast.ops.attend_projected import check_entries, check_parameters
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
    arguments: tuple[Any, ...] = (pixels, pixel_pe, *as_vectors(pixels, *wide), num_heads, eps)
    check_refine_projected(*arguments[:-1])
    name = select("refine_projected", pixels)
    if name == "reference":
        return refine_projected_definition(*arguments)
    if name == "torch":
        return refine_projected_definition(*arguments, attention=sdpa)
    refined: Tensor = torch.ops.d2ls_fast.refine_projected(*arguments)
    return refined


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
