"""dictionary_step: everything that happens to the dictionary between two passes over the pixels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from d2ls_fast import _extension
from d2ls_fast.backends import select
from d2ls_fast.ops._library import LIBRARY, define


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
    rounded once, when it meets them. Differentiable once in every tensor. Bitwise repeatable.

    Source: the D2LS interaction (arXiv 2503.06683), with the projections moved to the dictionary side.
    """
    check_step(dictionary, position, num_heads, dtype, context, update, entries, look)
    parts: list[list[Tensor]] = [list(part or ()) for part in (update, entries, look)]
    wide = torch.promote_types(dtype, torch.float32)
    name = select("dictionary_step", dictionary.to(wide), dictionary.shape[1])
    if name in ("reference", "torch"):
        step = Step(*dictionary_step_definition(dictionary, position, context, *parts, num_heads, eps, dtype))
    else:
        operator = torch.ops.d2ls_fast.dictionary_step
        if name == "triton":
            operator = torch.ops.d2ls_fast.dictionary_step_triton
        looked = None if context is None else context.to(wide)
        parameters = [[parameter.to(wide) for parameter in part] for part in parts]
        step = Step(*operator(dictionary.to(wide), position.to(wide), looked, *parameters, num_heads, eps, dtype))
    return step._replace(dictionary=dictionary if update is None else step.dictionary.to(dictionary.dtype))


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
    rows = dictionary.new_empty((0,), dtype=dtype)
    query, key, value = rows, rows, rows
    key_bias = dictionary.new_empty((0,), dtype=torch.promote_types(dtype, torch.float32))
    with torch.autocast(dictionary.device.type, enabled=False):
        entry = dictionary.to(fold)
        if context is not None:
            value_weight, value_bias, out_weight, out_bias, *norm = (p.to(fold) for p in update)
            mean = context.to(fold).unflatten(1, (num_heads, -1))
            mixed = torch.einsum("bhkc,hdc->bkhd", mean, _by_head(value_weight, num_heads)).flatten(2) + value_bias
            entry = F.layer_norm(entry + F.linear(mixed, out_weight, out_bias), entry.shape[-1:], *norm, eps)
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
    return torch.einsum("bhkd,hdc->bhkc", rows, _by_head(weight, rows.shape[1])).flatten(1, 2)


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
        raise ValueError(
            f"dictionary_step: dictionary must be [B, K, C] and not empty, got {tuple(dictionary.shape)}"
        )
    b, k, c = dictionary.shape
    if not dtype.is_floating_point:
        raise ValueError(f"dictionary_step: dtype must be a floating-point type, got {dtype}")
    if (context is None) != (update is None):
        raise ValueError("dictionary_step: context and update must be given together")
    parts = [("update", update), ("entries", entries), ("look", look)]
    tensors = {"dictionary": (dictionary, (b, k, c)), "position": (position, (b, k, c))}
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
            shape = (c, inner) if field == "out_weight" else (c,) if outward else (inner, c)
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
    """The backward in PyTorch, for machines without a kernel: the definition once more, and back through it.

    The formulas are those of linear layers and a norm, which autograd writes down as well as anybody.

    Returns:
        gradients of dictionary, position, context, update, entries and look, those of absent parts left out; the key
        bias of look, which has no influence, has none.
    """
    dtype = grad_query.dtype
    inputs = [dictionary, position, *([] if context is None else [context]), *update, *entries, *look[:3]]
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in inputs]
        rest = iter(leaves)
        start = [next(rest), next(rest), None if context is None else next(rest)]
        parts = [[next(rest) for _ in part] for part in (update, entries, look[:3])]
        parts[2] += look[3:]
        outputs = dictionary_step_definition(*start, *parts, num_heads, eps, dtype)  # type: ignore[arg-type]
    grads = (grad_dictionary, grad_query, grad_key, grad_key_bias, grad_value)
    pairs = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if output.requires_grad]
    gradients = torch.autograd.grad(
        [output for output, _ in pairs], leaves, [grad for _, grad in pairs], materialize_grads=True
    )
    return list(gradients)


# --- registration -------------------------------------------------------------------------------------------------

_ARGUMENTS = "Tensor dictionary, Tensor position, Tensor? context, Tensor[] update, Tensor[] entries, Tensor[] look"
_FORWARD = (
    f"({_ARGUMENTS}, int num_heads, float eps, ScalarType dtype) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
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


_PLAIN = (dictionary_step_definition, plain_backward)

_register("", cpu=(None, None) if _extension.LOADED else _PLAIN, cuda=_PLAIN)
