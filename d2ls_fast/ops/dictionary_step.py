"""dictionary_step: everything that happens to the dictionary between two passes over the pixels."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from d2ls_fast import _extension
from d2ls_fast.backends import current, select
from d2ls_fast.ops import _cuda
from d2ls_fast.ops._folding import dictionary_step_definition, plain_backward
from d2ls_fast.ops._library import LIBRARY, define, operator_of


class Update(NamedTuple):
    """Parameters that turn attend's context into the next dictionary (I: width of the attention)."""

    value_weight: Tensor  # [I, C]
    value_bias: Tensor  # [I]
    out_weight: Tensor  # [C, I]
    out_bias: Tensor  # [C]
    norm_weight: Tensor  # [C]
    norm_bias: Tensor  # [C]


class Entries(NamedTuple):
    """Parameters that fold the dictionary into the rows which the pixels look at: pixels <- dictionary."""

    query_weight: Tensor  # [I, C]
    query_bias: Tensor  # [I]
    key_weight: Tensor  # [I, C]
    key_bias: Tensor  # [I]
    value_weight: Tensor  # [I, C]
    value_bias: Tensor  # [I]
    out_weight: Tensor  # [C, I]


class Look(NamedTuple):
    """Parameters that fold the dictionary into its next look at the pixels: dictionary <- pixels."""

    query_weight: Tensor  # [I, C]
    query_bias: Tensor  # [I]
    key_weight: Tensor  # [I, C]
    key_bias: Tensor  # [I]


class Step(NamedTuple):
    """What a step gives; the parts that were not asked for are empty tensors."""

    dictionary: Tensor
    query: Tensor
    key: Tensor
    key_bias: Tensor
    value: Tensor


def dictionary_step(
    dictionary: Tensor,
    position: Tensor,
    num_heads: int,
    dtype: torch.dtype,
    *,
    context: Tensor | None = None,
    update: Update | None = None,
    entries: Entries | None = None,
    look: Look | None = None,
    eps: float = 1e-5,
) -> Step:
    r"""The next dictionary from attend's context, and the folded rows of the next pass over the pixels.

    With d the width of a head and :math:`t = D' + P`, for head h and entry k:

    .. math::
        D' &= \mathrm{LN}\Big(D + W_O \, [W_{V,h} M_{hk} + b_{V,h}]_h + b_O\Big) && \text{(update)} \\
        \kappa_{hk} &= W_{Q,h}^\top k_{hk}, \quad c_{hk} = b_{Q,h} \cdot k_{hk}, \quad
        k_{hk} = (W_{K,h} t_k + b_{K,h}) / \sqrt d && \text{(entries)} \\
        \nu_{hk} &= W_{O,h} (W_{V,h} D'_k + b_{V,h}) && \text{(entries)} \\
        q_{hk} &= W_{K,h}^\top (W_{Q,h} t_k + b_{Q,h}) / \sqrt d && \text{(look)}

    each line with the projections of its own attention. The key bias of a look adds the same to the scores of all
    pixels, so it has no influence; its gradient is zero.

    Args:
        dictionary: D, ``[B, K, C]``, any float dtype, as all that follow.
        position: P, the dictionary's own positional term, ``[B, K, C]``.
        num_heads: H.
        dtype: of the pixels, which the rows will meet: float32, bfloat16, float16 (kernels) or float64 (PyTorch).
        context: M, ``[B, H * K, C]`` as attend gives it; wanted with update and only then.
        update: None leaves D as it is, as before the first pass.
        entries: None where the pixels are not updated.
        look: None where nobody looks at the pixels any more.
        eps: added to the variance of the norm.

    Returns:
        D' ``[B, K, C]`` in the dtype of D (D itself without update); query q, key kappa and value nu ``[B, H * K, C]``
        in ``dtype``, rows head-major; key bias c ``[B, H * K]`` in float32 (float64 for float64 pixels).

    Raises:
        ValueError: shapes, dtypes or devices do not fit; the message names the argument.
        BackendError: a forced back end cannot serve the call.

    The plain form and the C++ kernel compute one precision above the pixels' (float64 for float32), so that a row is
    rounded once, when it meets them; the GPU's kernels compute in float32. Differentiable once in every tensor.
    Bitwise repeatable.

    Source: the D2LS interaction (arXiv 2503.06683), with the projections moved to the dictionary side.
    """
    check_step(dictionary, position, num_heads, dtype, context, update, entries, look)
    parts = (list(update or ()), list(entries or ()), list(look or ()))
    wide = torch.promote_types(dtype, torch.float32)
    name = select("dictionary_step", dictionary.to(wide), dictionary.shape[1])
    if name in ("reference", "torch"):
        step = Step(*dictionary_step_definition(dictionary, position, context, *parts, num_heads, eps, dtype))
    else:
        # On a GPU the operator without suffix is Triton too, but steps aside where a kernel does not fit.
        operator = operator_of("dictionary_step", name if name == current() else "")
        looked = None if context is None else context.to(wide)
        parameters = [[parameter.to(wide) for parameter in part] for part in parts]
        step = Step(*operator(dictionary.to(wide), position.to(wide), looked, *parameters, num_heads, eps, dtype))
    updated = dictionary if update is None else step.dictionary.to(dictionary.dtype)
    return Step(updated, *step[1:])  # built anew: torch.compile of 2.11 cannot return the result of _replace


def check_step(
    dictionary: Tensor,
    position: Tensor,
    num_heads: int,
    dtype: torch.dtype,
    context: Tensor | None,
    update: Update | None,
    entries: Entries | None,
    look: Look | None,
) -> None:
    """Raise ``ValueError`` unless the arguments fit each other; see :func:`dictionary_step`."""
    if dictionary.dim() != 3 or 0 in dictionary.shape:
        raise ValueError(f"dictionary_step: dictionary must be [B, K, C] and not empty, got {tuple(dictionary.shape)}")
    b, k, c = dictionary.shape
    if not dtype.is_floating_point:
        raise ValueError(f"dictionary_step: dtype must be a floating-point type, got {dtype}")
    if (context is None) != (update is None):
        raise ValueError("dictionary_step: context and update must be given together")
    parts = [("update", update), ("entries", entries), ("look", look)]
    tensors: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "dictionary": (dictionary, (b, k, c)),
        "position": (position, (b, k, c)),
    }
    if context is not None:
        tensors["context"] = (context, (b, num_heads * k, c))
    given = [part for _, part in parts if part is not None]
    if not given:
        raise ValueError("dictionary_step: one of update, entries and look must be given")
    inner = given[0][0].shape[0]
    if num_heads < 1 or inner % num_heads:
        raise ValueError(f"dictionary_step: num_heads must divide the attention width {inner}, got {num_heads}")
    for group, part in parts:
        for field, parameter in zip(part._fields, part, strict=True) if part is not None else ():
            outward = field.startswith(("out", "norm"))
            shape: tuple[int, ...] = (c, inner) if field == "out_weight" else (c,) if outward else (inner, c)
            shape = (inner,) if not outward and field.endswith("bias") else shape
            tensors[f"{group}.{field}"] = (parameter, shape)
    for name, (tensor, shape) in tensors.items():
        if tensor.shape != shape:
            raise ValueError(f"dictionary_step: {name} must be {list(shape)}, got {tuple(tensor.shape)}")
        if not tensor.dtype.is_floating_point:
            raise ValueError(f"dictionary_step: {name} must be a floating-point tensor, got {tensor.dtype}")
        if tensor.device != dictionary.device:
            raise ValueError(
                f"dictionary_step: {name} must be on the device of dictionary, {dictionary.device}, got {tensor.device}"
            )


# --- registration -------------------------------------------------------------------------------------------------

_ARGUMENTS = "Tensor dictionary, Tensor position, Tensor? context, Tensor[] update, Tensor[] entries, Tensor[] look"
_FORWARD = f"({_ARGUMENTS}, int num_heads, float eps, ScalarType dtype) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
_BACKWARD = (
    f"({_ARGUMENTS}, Tensor grad_dictionary, Tensor grad_query, Tensor grad_key, Tensor grad_key_bias,"
    " Tensor grad_value, int num_heads, float eps) -> Tensor[]"
)


def _fake_forward(
    dictionary: Tensor,
    position: Tensor,
    context: Tensor | None,
    update: list[Tensor],
    entries: list[Tensor],
    look: list[Tensor],
    num_heads: int,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    b, k, c = dictionary.shape
    rows = (b, num_heads * k, c)
    key_rows = rows if entries else (0,)
    return (
        dictionary.new_empty(dictionary.shape if update else (0,)),
        dictionary.new_empty(rows if look else (0,), dtype=dtype),
        dictionary.new_empty(key_rows, dtype=dtype),
        dictionary.new_empty(key_rows[:2]),
        dictionary.new_empty(key_rows, dtype=dtype),
    )


def _fake_backward(dictionary: Tensor, position: Tensor, context: Tensor | None, *arguments: Any) -> list[Tensor]:
    update, entries, look = arguments[:3]
    inputs = [dictionary, position, *([] if context is None else [context]), *update, *entries, *look[:3]]
    return [t.new_empty(t.shape) for t in inputs]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dictionary, position, context, update, entries, look, ctx.num_heads, ctx.eps, _ = inputs
    ctx.save_for_backward(dictionary, position, context, *update, *entries, *look)
    ctx.counts = (len(update), len(entries))


def _register(suffix: str, cpu: tuple[Any, Any], cuda: tuple[Any, Any]) -> None:
    """The operator with its backward operator: ``cpu`` and ``cuda`` are (forward, backward) kernels or Nones."""
    name = f"dictionary_step{suffix}"
    define(name, _FORWARD, fake=_fake_forward, cpu=cpu[0], cuda=cuda[0])
    define(f"{name}_backward", _BACKWARD, fake=_fake_backward, cpu=cpu[1], cuda=cuda[1])
    backward_operator = getattr(torch.ops.d2ls_fast, f"{name}_backward")

    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        dictionary, position, context, *parameters = ctx.saved_tensors
        first, second = ctx.counts[0], sum(ctx.counts)
        parts = [parameters[:first], parameters[first:second], parameters[second:]]
        gradients = list(backward_operator(dictionary, position, context, *parts, *grads, ctx.num_heads, ctx.eps))
        gradients += [torch.zeros_like(bias) for bias in parts[2][3:]]
        tokens = [gradients.pop(0), gradients.pop(0), None if context is None else gradients.pop(0)]
        return (*tokens, gradients[:first], gradients[first:second], gradients[second:], None, None, None)

    torch.library.register_autograd(f"d2ls_fast::{name}", backward, setup_context=_setup_context, lib=LIBRARY)


def _triton_forward(*arguments: Any) -> tuple[Tensor, ...]:
    from d2ls_fast.kernels import dictionary_step as kernel  # imported at the first call: it imports triton

    return kernel.dictionary_step_forward(*arguments)


def _triton_backward(*arguments: Any) -> list[Tensor]:
    from d2ls_fast.kernels import dictionary_step as kernel

    return kernel.dictionary_step_backward(*arguments)


def _where_it_fits(kernel: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """The Triton kernel, or plain PyTorch for more channels than it takes (a forced back end refuses those instead)."""

    def either(*arguments: Any) -> Any:
        from d2ls_fast.kernels.dictionary_step import why_not

        return (plain if why_not(arguments[0]) else kernel)(*arguments)

    return either


_PLAIN = (dictionary_step_definition, plain_backward)
_TRITON = (_triton_forward, _triton_backward)
_GPU: tuple[Any, Any] = _PLAIN
if importlib.util.find_spec("triton") is not None:
    _GPU = (
        _where_it_fits(_triton_forward, dictionary_step_definition),
        _where_it_fits(_triton_backward, plain_backward),
    )

_register("", cpu=(None, None) if _extension.LOADED else _PLAIN, cuda=_GPU)
_register("_triton", cpu=_TRITON, cuda=_TRITON)
_register("_cuda", cpu=(None, None), cuda=(_cuda.dictionary_step, _GPU[1]))
