"""attend: every dictionary row looks at all pixels once (dictionary <- pixels)."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from d2ls_fast import _extension
from d2ls_fast.backends import select
from d2ls_fast.ops import _cuda
from d2ls_fast.ops._library import LIBRARY, define, operator_of, with_autocast


def attend(pixels: Tensor, pixel_pe: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    r"""Softmax-weighted mean of the pixels for every query row.

    .. math::
        s_{jn} = q_j \cdot (x_n + p_n), \quad
        M_j = \sum_n \mathrm{softmax}_n(s_{jn}) \, x_n, \quad
        \mathrm{lse}_j = \log \sum_n e^{s_{jn}}

    This is the pixel side of a cross-attention whose key and value projections were folded into the query and into
    what follows: with :math:`q_{hk} = W_{K,h}^\top \tilde q_{hk} / \sqrt d`, head ``h`` of entry ``k`` attends as in
    the unfolded form, and its value is :math:`W_{V,h} M_{hk} + b_{V,h}`.

    Args:
        pixels: x, ``[B, N, C]``, float32, bfloat16, float16 (kernels) or float64 (plain PyTorch).
        pixel_pe: p, positional encoding ``[N, C]`` shared by the batch, or ``[B, N, C]``; same dtype.
        query: q, ``[G * B, J, C]``; rows in head-major order ``h * K + k``; same dtype. G >= 1 dictionaries look at
            the same pixels, which are read once for all of them: query ``g * B + b`` belongs to image b.

    Returns:
        context M ``[G * B, J, C]`` and log-sum-exp ``[G * B, J]``: float32, or float64 for float64 inputs.
        Accumulation, softmax and reductions are in that dtype too. Under autocast the inputs are first cast to its
        dtype.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; the message names the argument.
        BackendError: a forced back end cannot serve the call.

    Differentiable once in all three inputs, through both outputs; the backward recomputes the scores, so nothing of
    size ``N x J`` is ever stored. Results and gradients are bitwise repeatable.

    Source: the D2LS interaction (arXiv 2503.06683), with the projections moved to the dictionary side.
    """
    pixels, pixel_pe, query = with_autocast((pixels, pixel_pe, query))
    check_attend(pixels, pixel_pe, query)
    name = select("attend", pixels)
    operator = attend_definition if name in ("reference", "torch") else operator_of("attend", name)
    images = pixels.shape[0]
    dictionaries = query.shape[0] // images
    if dictionaries == 1:
        return operator(pixels, pixel_pe, query)
    # To the operator, more dictionaries are more rows.
    rows = query.unflatten(0, (dictionaries, images)).transpose(0, 1).flatten(1, 2)
    context, log_sum_exp = (
        result.unflatten(1, (dictionaries, -1)).transpose(0, 1).flatten(0, 1)
        for result in operator(pixels, pixel_pe, rows)
    )
    return context, log_sum_exp


def attend_definition(pixels: Tensor, pixel_pe: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """The operator in plain PyTorch: what every kernel is compared with.

    The two products run in the inputs' dtype, as the unfused model's do; softmax and log-sum-exp in float32 (float64).
    """
    accumulate = torch.promote_types(pixels.dtype, torch.float32)
    scores = (query @ (pixels + pixel_pe).transpose(-1, -2)).to(accumulate)
    log_sum_exp = scores.logsumexp(dim=-1)
    weights = torch.exp(scores - log_sum_exp.unsqueeze(-1))
    return (weights.to(pixels.dtype) @ pixels).to(accumulate), log_sum_exp


def attend_gradients(
    pixels: Tensor,
    pixel_pe: Tensor,
    query: Tensor,
    context: Tensor,
    log_sum_exp: Tensor,
    grad_context: Tensor,
    grad_log_sum_exp: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward formulas of attend in PyTorch, in the precision of context.

    Returns:
        the gradient of the pixels as values and that of pixels + pe as keys, each ``[B, N, C]``, and of the query
        ``[B, J, C]``.
    """
    dtype = context.dtype
    x, y, q = pixels.to(dtype), (pixels + pixel_pe).to(dtype), query.to(dtype)
    weights = torch.exp(q @ y.transpose(-1, -2) - log_sum_exp.unsqueeze(-1))
    delta = (grad_context * context).sum(-1) - grad_log_sum_exp
    grad_scores = weights * (grad_context @ x.transpose(-1, -2) - delta.unsqueeze(-1))
    return weights.transpose(-1, -2) @ grad_context, grad_scores.transpose(-1, -2) @ q, grad_scores @ y


def check_attend(pixels: Tensor, pixel_pe: Tensor, query: Tensor) -> None:
    """Raise ``ValueError`` unless the arguments fit each other; see :func:`attend`."""
    check_pixels("attend", pixels, pixel_pe)
    check_rows("attend", "query", query, pixels)


def check_pixels(operator: str, pixels: Tensor, pixel_pe: Tensor) -> None:
    """Raise ``ValueError`` unless pixels are ``[B, N, C]`` and pixel_pe fits them."""
    if pixels.dim() != 3:
        raise ValueError(f"{operator}: pixels must be [B, N, C], got {tuple(pixels.shape)}")
    b, n, c = pixels.shape
    if b == 0 or n == 0 or c == 0:
        raise ValueError(f"{operator}: pixels must not be empty, got {tuple(pixels.shape)}")
    if not pixels.dtype.is_floating_point:
        raise ValueError(f"{operator}: pixels must be a floating-point tensor, got {pixels.dtype}")
    if tuple(pixel_pe.shape) not in ((n, c), (b, n, c)):
        raise ValueError(f"{operator}: pixel_pe must be [{n}, {c}] or [{b}, {n}, {c}], got {tuple(pixel_pe.shape)}")
    _check_kind(operator, "pixel_pe", pixel_pe, pixels)


def check_rows(operator: str, name: str, rows: Tensor, pixels: Tensor) -> None:
    """Raise ``ValueError`` unless ``rows`` is ``[G * B, J, C]`` with the B, C, dtype and device of pixels."""
    b, _, c = pixels.shape
    if rows.dim() != 3 or rows.shape[0] % b or rows.shape[2] != c:
        raise ValueError(f"{operator}: {name} must be [G * {b}, J, {c}], got {tuple(rows.shape)}")
    if rows.shape[0] == 0 or rows.shape[1] == 0:
        raise ValueError(f"{operator}: {name} must have at least one row an image, got {tuple(rows.shape)}")
    _check_kind(operator, name, rows, pixels)


def _check_kind(operator: str, name: str, tensor: Tensor, pixels: Tensor) -> None:
    if tensor.dtype != pixels.dtype:
        raise ValueError(f"{operator}: {name} must have the dtype of pixels, {pixels.dtype}, got {tensor.dtype}")
    if tensor.device != pixels.device:
        raise ValueError(f"{operator}: {name} must be on the device of pixels, {pixels.device}, got {tensor.device}")


# --- registration -------------------------------------------------------------------------------------------------

_FORWARD = "(Tensor pixels, Tensor pixel_pe, Tensor query) -> (Tensor, Tensor)"
_BACKWARD = (
    "(Tensor pixels, Tensor pixel_pe, Tensor query, Tensor context, Tensor log_sum_exp, Tensor grad_context,"
    " Tensor grad_log_sum_exp, bool need_pe_grad) -> (Tensor, Tensor, Tensor)"
)


def _fake_forward(pixels: Tensor, pixel_pe: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    check_attend(pixels, pixel_pe, query)
    dtype = torch.promote_types(pixels.dtype, torch.float32)
    return query.new_empty(query.shape, dtype=dtype), query.new_empty(query.shape[:2], dtype=dtype)


def _fake_backward(
    pixels: Tensor,
    pixel_pe: Tensor,
    query: Tensor,
    context: Tensor,
    log_sum_exp: Tensor,
    grad_context: Tensor,
    grad_log_sum_exp: Tensor,
    need_pe_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_pe = pixel_pe.new_empty(pixel_pe.shape if need_pe_grad else (0,))
    return pixels.new_empty(pixels.shape), grad_pe, query.new_empty(query.shape)


def _plain_backward(
    pixels: Tensor,
    pixel_pe: Tensor,
    query: Tensor,
    context: Tensor,
    log_sum_exp: Tensor,
    grad_context: Tensor,
    grad_log_sum_exp: Tensor,
    need_pe_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward in PyTorch, for machines without the compiled extension."""
    through_values, through_scores, grad_query = attend_gradients(
        pixels, pixel_pe, query, context, log_sum_exp, grad_context, grad_log_sum_exp
    )
    grad_pixels = through_scores + through_values
    if not need_pe_grad:
        grad_pe = pixel_pe.new_empty((0,))
    else:
        grad_pe = (through_scores if pixel_pe.dim() == 3 else through_scores.sum(0)).to(pixel_pe.dtype)
    return grad_pixels.to(pixels.dtype), grad_pe, grad_query.to(query.dtype)


def _triton_forward(pixels: Tensor, pixel_pe: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    from d2ls_fast.kernels import attend as kernel  # imported at the first call: it imports triton

    return kernel.attend_forward(pixels, pixel_pe, query)


def _triton_backward(
    pixels: Tensor,
    pixel_pe: Tensor,
    query: Tensor,
    context: Tensor,
    log_sum_exp: Tensor,
    grad_context: Tensor,
    grad_log_sum_exp: Tensor,
    need_pe_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from d2ls_fast.kernels import attend as kernel

    grad_pixels, grad_pe, grad_query = kernel.attend_backward(
        pixels, pixel_pe, query, context, log_sum_exp, grad_context, grad_log_sum_exp, need_pe_grad
    )
    return grad_pixels, pixel_pe.new_empty((0,)) if grad_pe is None else grad_pe, grad_query


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _register(name: str, cpu: tuple[Any, Any], cuda: tuple[Any, Any]) -> None:
    """One operator with its backward operator: ``cpu`` and ``cuda`` are (forward, backward) kernels or Nones."""
    define(name, _FORWARD, fake=_fake_forward, cpu=cpu[0], cuda=cuda[0])
    define(f"{name}_backward", _BACKWARD, fake=_fake_backward, cpu=cpu[1], cuda=cuda[1])
    backward_operator = getattr(torch.ops.d2ls_fast, f"{name}_backward")

    def backward(ctx: Any, grad_context: Tensor, grad_log_sum_exp: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        need_pe_grad = ctx.needs_input_grad[1]
        grad_pixels, grad_pe, grad_query = backward_operator(
            *ctx.saved_tensors, grad_context, grad_log_sum_exp, need_pe_grad
        )
        return grad_pixels, grad_pe if need_pe_grad else None, grad_query

    torch.library.register_autograd(f"d2ls_fast::{name}", backward, setup_context=_setup_context, lib=LIBRARY)


_PLAIN = (attend_definition, _plain_backward)
_TRITON = (_triton_forward, _triton_backward)
_GPU = _TRITON if importlib.util.find_spec("triton") is not None else _PLAIN

_register("attend", cpu=(None, None) if _extension.LOADED else _PLAIN, cuda=_GPU)
_register("attend_triton", cpu=_TRITON, cuda=_TRITON)
_register("attend_cuda", cpu=(None, None), cuda=(_cuda.attend, _cuda.attend_backward))
