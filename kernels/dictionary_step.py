"""``dictionary_step`` in Triton: everything between two passes over the pixels in two launches, backward in six.

The formulas are those of ``d2ls_fast.ops.dictionary_step``. Forward: programs over blocks of tokens (rows of
[B, K, C]) update the dictionary; programs over blocks of tokens, heads and parts (query, key, value) fold it. The
weights are read from L2, 16 inner columns at a time. Backward: the update once more, then the gradients of the
projected rows, of the dictionary, of the context, and of the weights, each summed over all tokens by one program.

Everything is float32 and products are exact (never TF32): two chained float32 products, so a folded row is off by about
1e-6 of its largest value. For bfloat16 and float16 pixels that is far below the rounding of the row itself; for float32
pixels the scores lose about as much again as in the unfused path. Without atomics: results repeat bit for bit.

Shapes: B, K, H >= 1 are free; C up to what the architecture's shared memory takes (see ``why_not``).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from . import configs
from ._launch import DTYPES, on_device, sum_partials
from ._step_backward import step_grad_context, step_grad_dictionary, step_grad_rows, step_grad_weights
from ._step_forward import step_rows, step_update


def why_not(dictionary: Tensor) -> str:
    """Why the kernels cannot take a dictionary of this shape on its device, or nothing."""
    most = configs.architecture(dictionary.device).step.max_channels
    return "" if dictionary.shape[-1] <= most else f"channels must be at most {most}, got {dictionary.shape[-1]}"


def _padded(tensors: list[Tensor], count: int) -> list[Tensor | None]:
    """As many arguments as a kernel has: Nones where a part is absent."""
    return [*tensors, *[None] * (count - len(tensors))]


class _Call:
    """One call's tensors, contiguous, and its sizes; absent parts are lists of None."""

    def __init__(
        self,
        dictionary: Tensor,
        position: Tensor,
        context: Tensor | None,
        update: list[Tensor],
        entries: list[Tensor],
        look: list[Tensor],
        num_heads: int,
        dtype: torch.dtype,
    ) -> None:
        batch, self.entries, channels = dictionary.shape
        given = [dictionary, position, *([] if context is None else [context]), *update, *entries, *look]
        if dtype not in DTYPES or any(t.dtype != torch.float32 for t in given):
            raise TypeError(
                "dictionary_step: tensors must be float32 and dtype one of float32, bfloat16, float16; "
                f"got {sorted({str(t.dtype) for t in given})}, {dtype}"
            )
        if why_not(dictionary):
            raise ValueError(f"dictionary_step: {why_not(dictionary)}")
        self.batch, self.channels, self.heads = batch, channels, num_heads
        self.num_rows = batch * self.entries
        self.inner = [*update, *entries, *look][0].shape[0]
        self.dictionary, self.position = dictionary.contiguous(), position.contiguous()
        self.context = None if context is None else context.contiguous()
        self.update = _padded([t.contiguous() for t in update], 6)
        self.folding = _padded([t.contiguous() for t in look[:3]], 3) + _padded([t.contiguous() for t in entries], 7)
        self.parts = {"LOOK": bool(look), "ENTRIES": bool(entries)}
        tile = configs.architecture(dictionary.device).step
        self.blocks = triton.cdiv(self.num_rows, tile.block_r)
        self.sizes = (self.num_rows, self.entries, self.heads)
        self.scale = (self.inner // self.heads) ** -0.5
        self.shape = {"C": channels, "INNER": self.inner, "WIDTH": self.inner // self.heads}
        self.wide = {"WIDE": max(16, configs.power_of_two(channels))}
        self.block_r = {"BLOCK_R": tile.block_r}
        self.block_c = {"BLOCK_C": min(tile.block_c, self.wide["WIDE"])}
        self.options: dict[str, Any] = {"num_warps": tile.num_warps, "num_stages": 1, "enable_fp_fusion": True}

    def empty(self, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, dtype=dtype, device=self.dictionary.device)

    def folded(self, wanted: bool, dtype: torch.dtype) -> Tensor:
        size = (self.batch, self.heads * self.entries, self.channels) if wanted else (0,)
        return self.empty(*size, dtype=dtype)

    def advance(self, eps: float, save: bool) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
        """The next dictionary and, with ``save``, V, the normalised sum and 1 / sigma; the given one without update."""
        if self.context is None:
            return self.dictionary, None
        updated = torch.empty_like(self.dictionary)
        saved = None
        if save:
            rows = self.num_rows
            saved = (self.empty(rows, self.inner), self.empty(rows, self.channels), self.empty(rows))
        step_update[(self.blocks,)](
            self.dictionary, self.context, *self.update, updated, *(saved or (None,) * 3), *self.sizes, eps,
            SAVE=save, **self.shape, **self.block_r, **self.block_c, **self.wide, **self.options,
        )  # fmt: skip
        return updated, saved

    def programs(self) -> int:
        """Blocks of tokens x heads x parts."""
        return self.blocks * self.heads * (self.parts["LOOK"] + 2 * self.parts["ENTRIES"])


def dictionary_step_forward(
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
    """The next dictionary, and query, key, key bias and value rows; those of absent parts (empty lists) are empty.

    Args:
        dictionary, position: [B, K, C]; context: [B, H * K, C] or None; update, entries, look: the parameters in the
            order of the operator's groups. All float32.
        num_heads: H; eps: of the norm; dtype: of query, key and value.

    Raises:
        TypeError, ValueError: dtype or shape outside what the kernels take.
    """
    call = _Call(dictionary, position, context, update, entries, look, num_heads, dtype)
    query, key, value = (call.folded(wanted, dtype) for wanted in (bool(look), bool(entries), bool(entries)))
    key_bias = call.empty(*key.shape[:2])
    with on_device(dictionary.device):
        updated, _ = call.advance(eps, save=False)
        if call.programs():
            step_rows[(call.programs(),)](
                updated, call.position, *call.folding, query, key, key_bias, value, *call.sizes, call.scale,
                **call.parts, **call.shape, **call.block_r, **call.block_c, **call.wide, **call.options,
            )  # fmt: skip
    return updated if update else call.empty(0), query, key, key_bias, value


def dictionary_step_backward(
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
    """Gradients of dictionary, position, context, update, entries and look without its key bias; absent ones left out.

    Raises:
        TypeError, ValueError: dtype or shape outside what the kernels take.
    """
    call = _Call(dictionary, position, context, update, entries, look, num_heads, grad_query.dtype)
    rows, inner, channels = call.num_rows, call.inner, call.channels
    grad_rows = [t.contiguous() for t in (grad_query, grad_key, grad_key_bias, grad_value)]
    projected, grad_projected = call.empty(3, rows, inner), call.empty(3, rows, inner)
    to_tokens = [torch.empty_like(call.dictionary), torch.empty_like(call.position)]
    to_context = [] if call.context is None else [torch.empty_like(call.context)]
    to_update = [torch.empty_like(t) for t in call.update[:3] if t is not None]
    to_look = [torch.empty_like(t) for t in call.folding[:3] if t is not None]
    to_entries = [torch.empty_like(t) for t in call.folding[3:] if t is not None]
    to_mixed = call.empty(rows, inner) if update else None
    part_vectors = call.empty(call.blocks, 3, channels) if update else None
    flags = {"UPDATE": bool(update), **call.parts}
    vectors: list[Tensor] = []
    with on_device(dictionary.device):
        tokens, saved = call.advance(eps, save=True)
        mixed, normal, inverse_sigma = saved or (None,) * 3
        if call.programs():
            step_grad_rows[(call.programs(),)](
                tokens, call.position, *call.folding, *grad_rows, projected, grad_projected, *call.sizes, call.scale,
                **call.parts, **call.shape, **call.block_r, **call.block_c, **call.options,
            )  # fmt: skip
        look_weight, _, _, _, _, key_weight, _, entry_weight, *_ = call.folding
        step_grad_dictionary[(call.blocks,)](
            grad_projected, look_weight, key_weight, entry_weight, grad_dictionary.contiguous(), normal, inverse_sigma,
            call.update[4], *to_tokens, part_vectors, rows,
            C=channels, INNER=inner, **flags, **call.block_r, **call.wide, **call.options,
        )  # fmt: skip
        if update:
            step_grad_context[(call.blocks * call.heads,)](
                to_tokens[0], call.update[2], call.update[0], to_mixed, *to_context, *call.sizes,
                **call.shape, **call.block_r, **call.block_c, **call.wide, **call.options,
            )  # fmt: skip
        tiles = call.heads * triton.cdiv(call.shape["WIDTH"], 16) * triton.cdiv(channels, call.block_c["BLOCK_C"])
        step_grad_weights[(4 * tiles,)](
            tokens, call.position, call.context, mixed, projected, grad_projected, to_mixed, to_tokens[0], *grad_rows,
            *_padded(to_update, 3), *_padded(to_entries, 7), *_padded(to_look, 3), *call.sizes,
            **flags, **call.shape, **call.block_r, **call.block_c, **call.options,
        )  # fmt: skip
        if part_vectors is not None:
            norm_weight, norm_bias, out_bias = sum_partials(part_vectors, torch.float32, 1, call.blocks).view(3, -1)
            vectors = [out_bias, norm_weight, norm_bias]
    return [*to_tokens, *to_context, *to_update, *vectors, *to_entries, *to_look]
