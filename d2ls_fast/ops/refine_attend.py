"""refine_attend: the pixels are updated and the dictionary attends to the result, in one pass over the pixels."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from d2ls_fast import _extension
from d2ls_fast.backends import select
from d2ls_fast.kernels.configs import why_not
from d2ls_fast.ops import _cuda
from d2ls_fast.ops._library import LIBRARY, define, operator_of, with_autocast
from d2ls_fast.ops._refine import plain_backward
from d2ls_fast.ops.attend import attend, attend_definition, check_rows
from d2ls_fast.ops.refine import as_vectors, check_refine, refine, refine_definition, repeated


def refine_attend(
    pixels: Tensor,
    pixel_pe: Tensor,
    key: Tensor,
    key_bias: Tensor,
    value: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    query: Tensor,
    num_heads: int,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`~d2ls_fast.ops.refine.refine`, then :func:`~d2ls_fast.ops.attend.attend` on its result.

    One read and one write of the pixels instead of two reads and a write: stage l's pixel update and stage l + 1's look
    at the pixels need the same dictionary, so both fit in one pass.

    Args:
        query: ``[G * B, J', C]`` in the dtype of pixels; J' need not be the J of key. The others are those of refine.

    Returns:
        updated pixels ``[G * B, N, C]``; context ``[G * B, J', C]`` and log-sum-exp ``[G * B, J']``, query
        ``g * B + b`` having looked at the pixels that dictionary ``g * B + b`` updated.

    Raises:
        ValueError, BackendError: as refine and attend.

    Differentiable once in every tensor, through all three outputs. Bitwise repeatable.
    """
    pixels, pixel_pe, key, value, query = with_autocast((pixels, pixel_pe, key, value, query))
    key_bias, out_bias, norm_weight, norm_bias = as_vectors(pixels, key_bias, out_bias, norm_weight, norm_bias)
    arguments = (pixels, pixel_pe, key, key_bias, value, out_bias, norm_weight, norm_bias)
    check_refine(*arguments, num_heads)
    _check_query(query, pixels, key)
    name = select("refine_attend", pixels, key.shape[1] // num_heads)
    if name in ("reference", "torch"):
        # Each half by its own best back end: there may be a kernel for one of them.
        refined = refine(*arguments, num_heads, eps)
        return (refined, *attend(refined, repeated(pixel_pe, refined), query))
    result: tuple[Tensor, Tensor, Tensor] = operator_of("refine_attend", name)(*arguments, query, num_heads, eps)
    return result


def refine_attend_definition(
    pixels: Tensor,
    pixel_pe: Tensor,
    key: Tensor,
    key_bias: Tensor,
    value: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    query: Tensor,
    num_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator in plain PyTorch: one definition after the other."""
    refined = refine_definition(
        pixels, pixel_pe, key, key_bias, value, out_bias, norm_weight, norm_bias, num_heads, eps
    )
    return (refined, *attend_definition(refined, repeated(pixel_pe, refined), query))


def _check_query(query: Tensor, pixels: Tensor, key: Tensor) -> None:
    check_rows("refine_attend", "query", query, pixels)
    if query.shape[0] != key.shape[0]:
        expected = f"[{key.shape[0]}, J, {key.shape[2]}]"
        raise ValueError(f"refine_attend: query must be {expected} as key is, got {tuple(query.shape)}")


# --- registration -------------------------------------------------------------------------------------------------

_ARGUMENTS = (
    "Tensor pixels, Tensor pixel_pe, Tensor key, Tensor key_bias, Tensor value, Tensor out_bias, Tensor norm_weight,"
    " Tensor norm_bias"
)
_BACKWARD = (
    f"({_ARGUMENTS}, Tensor? query, Tensor? context, Tensor? log_sum_exp, Tensor grad_refined, Tensor? grad_context,"
    " Tensor? grad_log_sum_exp, int num_heads, float eps, bool need_pe_grad)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _fake_refine(*arguments: Any) -> Tensor:
    check_refine(*arguments[:9])
    return _fake_refined(*arguments)


def _fake_refined(pixels: Tensor, pixel_pe: Tensor, key: Tensor, *_: Any) -> Tensor:
    return pixels.new_empty((key.shape[0], *pixels.shape[1:]))


def _fake_refine_attend(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    pixels, key, query, num_heads = arguments[0], arguments[2], arguments[8], arguments[9]
    check_refine(*(*arguments[:8], num_heads))
    _check_query(query, pixels, key)
    dtype = torch.promote_types(pixels.dtype, torch.float32)
    context = query.new_empty(query.shape, dtype=dtype)
    return _fake_refined(*arguments), context, query.new_empty(query.shape[:2], dtype=dtype)


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    query, need_pe_grad = arguments[8], arguments[-1]
    gradients = [t.new_empty(t.shape) for t in arguments[:8]]
    if not need_pe_grad:
        gradients[1] = gradients[1].new_empty((0,))
    gradients.append(arguments[0].new_empty((0,)) if query is None else query.new_empty(query.shape))
    return tuple(gradients)


def _save_refine(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.num_heads, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _save_refine_attend(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.num_heads, ctx.eps = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _triton_refine(*arguments: Any) -> Tensor:
    from d2ls_fast.kernels import refine as kernel  # imported at the first call: it imports triton

    *tensors, num_heads, eps = arguments
    return kernel.refine_forward(kernel.Inputs(*tensors), num_heads, eps)


def _triton_refine_attend(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from d2ls_fast.kernels import refine_attend as kernel

    *tensors, query, num_heads, eps = arguments
    return kernel.refine_attend_forward(kernel.Inputs(*tensors), query, num_heads, eps)


def _triton_backward(*arguments: Any) -> tuple[Tensor, ...]:
    from d2ls_fast.kernels import refine_attend as kernel

    inputs = kernel.Inputs(*arguments[:8])
    query, context, log_sum_exp, grad_refined, grad_context, grad_log_sum_exp, *options = arguments[8:]
    if query is None:
        gradients, grad_query = kernel.refine_backward(inputs, grad_refined, *options), inputs.pixels.new_empty((0,))
    else:
        gradients, grad_query = kernel.refine_attend_backward(
            inputs, query, context, log_sum_exp, grad_refined, grad_context, grad_log_sum_exp, *options
        )
    nothing = inputs.pixels.new_empty((0,))
    return (*(nothing if gradient is None else gradient for gradient in gradients), grad_query)


def _where_it_fits(kernel: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """The Triton kernel, or plain PyTorch for shapes it does not take (a forced back end refuses those instead)."""

    def either(*arguments: Any) -> Any:
        return (plain if why_not(arguments[0].shape[-1]) else kernel)(*arguments)

    return either


def _register(suffix: str, cpu: tuple[Any, Any, Any], cuda: tuple[Any, Any, Any]) -> None:
    """refine, refine_attend and their common backward operator: three kernels (or Nones) for each device."""
    refine_name, both_name = f"refine{suffix}", f"refine_attend{suffix}"
    define(
        refine_name,
        f"({_ARGUMENTS}, int num_heads, float eps) -> Tensor",
        fake=_fake_refine,
        cpu=cpu[0],
        cuda=cuda[0],
    )
    define(
        both_name,
        f"({_ARGUMENTS}, Tensor query, int num_heads, float eps) -> (Tensor, Tensor, Tensor)",
        fake=_fake_refine_attend,
        cpu=cpu[1],
        cuda=cuda[1],
    )
    define(f"{both_name}_backward", _BACKWARD, fake=_fake_backward, cpu=cpu[2], cuda=cuda[2])
    backward_operator = getattr(torch.ops.d2ls_fast, f"{both_name}_backward")

    def gradients(ctx: Any, query: Tensor | None, saved: tuple[Any, ...], grads: tuple[Any, ...]) -> list[Any]:
        need_pe_grad = ctx.needs_input_grad[1]
        inputs = ctx.saved_tensors[:8]
        result = list(backward_operator(*inputs, query, *saved, *grads, ctx.num_heads, ctx.eps, need_pe_grad))
        if not need_pe_grad:
            result[1] = None
        return result

    def refine_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return (*gradients(ctx, None, (None, None), (grad, None, None))[:8], None, None)

    def both_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        query, context, log_sum_exp = ctx.saved_tensors[8:]
        return (*gradients(ctx, query, (context, log_sum_exp), grads), None, None)

    for name, backward, save in (
        (refine_name, refine_backward, _save_refine),
        (both_name, both_backward, _save_refine_attend),
    ):
        torch.library.register_autograd(f"d2ls_fast::{name}", backward, setup_context=save, lib=LIBRARY)


_PLAIN = (refine_definition, refine_attend_definition, plain_backward)
_TRITON = (_triton_refine, _triton_refine_attend, _triton_backward)
_GPU: tuple[Any, Any, Any] = _PLAIN
if importlib.util.find_spec("triton") is not None:
    _GPU = (
        _where_it_fits(_triton_refine, refine_definition),
        _where_it_fits(_triton_refine_attend, refine_attend_definition),
        _where_it_fits(_triton_backward, plain_backward),
    )

_register("", cpu=(None, None, None) if _extension.LOADED else _PLAIN, cuda=_GPU)
_register("_triton", cpu=_TRITON, cuda=_TRITON)
_register("_cuda", cpu=(None, None, None), cuda=(_cuda.refine, _cuda.refine_attend, _cuda.refine_backward))
