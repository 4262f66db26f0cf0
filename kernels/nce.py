"""The sums of ``pixel_dictionary_nce`` in Triton, forward and backward; ``d2ls_fast.ops._nce`` has the formulas.

Forward: ``nce_rows`` runs over the entries for every tile of pixels (log-sum-exp of all scores and of those of the
pixel's class), ``nce_classes`` adds those up by class, ``nce_columns`` runs over the pixels for every block of entries.
Backward: ``nce_rows`` again, then the gradient of the pixels tile by tile and that of the entries chunk by chunk, with
the scores formed anew in each. The scores of a tile never leave the chip; two floats a pixel do.

Sums over the pixels go to per-chunk partial results that are added up in a fixed order, without atomics: results repeat
bit for bit. All sums are float32; float32 products are exact unless torch allows TF32, those of 16-bit pixels are TF32,
in which the pixels are exact.

Shapes: B, N, K, P >= 1 are free; C is a multiple of 16 from 16 to 1024.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import configs
from ._launch import DTYPES, on_device, sum_partials, tf32_allowed
from ._nce import nce_classes, nce_columns, nce_grad_entries, nce_grad_pixels, nce_rows

CLASS_BLOCK, CLASS_PIXELS, _CLASS_CHUNK = 16, 256, 4096


class _Call(NamedTuple):
    """The inputs made contiguous, with the integer arguments that every kernel takes."""

    tensors: tuple[Tensor, Tensor, Tensor]
    sizes: tuple[int, int, int, int]
    batch: int
    classes: int


def _prepared(pixels: Tensor, entries: Tensor, target: Tensor, prototypes: int, ignore_index: int) -> _Call:
    (batch, num_pixels, channels), rows = pixels.shape, entries.shape[1]
    if pixels.dtype not in DTYPES or entries.dtype != torch.float32:
        raise TypeError(
            "nce: pixels must be float32, bfloat16 or float16 and entries float32; "
            f"got {pixels.dtype} and {entries.dtype}"
        )
    if channels % 16 or not 16 <= channels <= 1024:
        raise ValueError(f"nce: channels must be a multiple of 16 from 16 to 1024, got {channels}")
    if entries.shape != (batch, rows, channels) or target.shape != (batch, num_pixels) or rows % prototypes:
        raise ValueError(
            f"nce: shapes do not match: pixels {tuple(pixels.shape)}, entries {tuple(entries.shape)}, "
            f"target {tuple(target.shape)}, {prototypes} prototypes"
        )
    tensors = (pixels.contiguous(), entries.contiguous(), target.contiguous())
    return _Call(tensors, (num_pixels, rows, prototypes, ignore_index), batch, rows // prototypes)


def _options(kernel: str, call: _Call) -> dict[str, Any]:
    """Compile-time arguments and launch options of one kernel."""
    pixels, entries, _ = call.tensors
    kind = "ieee" if pixels.dtype == torch.float32 and not tf32_allowed() else "tf32"
    tile = configs.NCE[kernel, kind]
    return {
        "C": pixels.shape[2],
        **configs.block_sizes(tile, pixels.shape[2], entries.shape[1]),
        "PRECISION": kind,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        "enable_fp_fusion": True,
    }


def _chunks(call: _Call, blocks: dict[str, Any], groups: int) -> tuple[int, int]:
    """(chunks of the pixels, tiles per chunk) for a kernel with ``groups`` programs a chunk."""
    programs = configs.architecture(call.tensors[0].device).programs
    return configs.split(call.sizes[0], blocks["BLOCK_N"], groups, programs)


def _rows(call: _Call) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over all entries and over those of the own class, [B, N]; the latter is void without a label."""
    row_lse = torch.empty(call.tensors[2].shape, dtype=torch.float32, device=call.tensors[0].device)
    own = torch.empty_like(row_lse)
    options = _options("nce_rows", call)
    tiles = triton.cdiv(call.sizes[0], options["BLOCK_N"])
    nce_rows[(call.batch * tiles,)](*call.tensors, row_lse, own, *call.sizes, **options)
    return row_lse, own


def nce_forward(
    pixels: Tensor, entries: Tensor, target: Tensor, prototypes: int, ignore_index: int, rows: bool, columns: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sums per image and class.

    Args:
        pixels: [B, N, C], float32, bfloat16 or float16.
        entries: [B, K * P, C], float32.
        target: [B, N], int64.
        prototypes: P.
        ignore_index: label of pixels that take no part.
        rows, columns: which sums are wanted.

    Returns:
        loss, positive, log_sum_exp [B, K], float32, and count [B, K + 1], int64.

    Raises:
        TypeError, ValueError: dtype or shape outside what the kernels take.
    """
    call = _prepared(pixels, entries, target, prototypes, ignore_index)
    (num_pixels, num_entries, *_), batch, classes = call.sizes, call.batch, call.classes
    scratch: dict[str, Any] = {"dtype": torch.float32, "device": pixels.device}
    chunks = triton.cdiv(num_pixels, _CLASS_CHUNK)
    part_sums = torch.empty(batch, chunks, 2, classes, **scratch)
    part_count = torch.empty(batch, chunks, classes + 1, dtype=torch.int32, device=pixels.device)
    with on_device(pixels.device):
        row_lse, own = _rows(call)
        nce_classes[(batch * chunks * triton.cdiv(classes + 1, CLASS_BLOCK),)](
            call.tensors[2], row_lse, own, part_sums, part_count, num_pixels, classes, ignore_index, chunks,
            _CLASS_CHUNK, BLOCK_K=CLASS_BLOCK, BLOCK_N=CLASS_PIXELS, enable_fp_fusion=True,
        )  # fmt: skip
        loss, positive = (total.contiguous() for total in part_sums.sum(1).unbind(1))
        log_sum_exp = torch.zeros_like(loss)
        if columns:
            options = _options("nce_columns", call)
            groups = batch * triton.cdiv(num_entries, options["BLOCK_J"])
            chunks, tiles_per_chunk = _chunks(call, options, groups)
            part_top = torch.empty(batch, chunks, num_entries, **scratch)
            part_sum = torch.empty(batch, chunks, num_entries, **scratch)
            nce_columns[(groups * chunks,)](
                *call.tensors, part_top, part_sum, *call.sizes, chunks, tiles_per_chunk, **options
            )
            parts = (part_top + part_sum.log()).view(batch, chunks, classes, prototypes)
            log_sum_exp = parts.logsumexp((1, 3))
            log_sum_exp = log_sum_exp.where(log_sum_exp > float("-inf"), 0.0)
    if not rows:
        loss = torch.zeros_like(loss)
    if not columns:
        positive = torch.zeros_like(positive)
    return loss, positive, log_sum_exp, part_count.sum(1)


def nce_backward(
    pixels: Tensor,
    entries: Tensor,
    target: Tensor,
    log_sum_exp: Tensor,
    grad_loss: Tensor,
    grad_positive: Tensor,
    grad_log_sum_exp: Tensor,
    prototypes: int,
    ignore_index: int,
    rows: bool,
    columns: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of ``nce_forward`` with respect to pixels and entries, in their shapes and dtypes.

    Args:
        log_sum_exp: what the forward pass returned.
        grad_loss, grad_positive, grad_log_sum_exp: [B, K], float32.
        pixels, entries, target, prototypes, ignore_index, rows, columns: what the forward pass was given.

    Raises:
        TypeError, ValueError: dtype or shape outside what the kernels take.
    """
    call = _prepared(pixels, entries, target, prototypes, ignore_index)
    (num_pixels, num_entries, *_), batch = call.sizes, call.batch
    channels = pixels.shape[2]
    by_class = [t.float().contiguous() for t in (log_sum_exp, grad_loss, grad_positive, grad_log_sum_exp)]
    flags = {"ROWS": rows, "COLUMNS": columns}
    grad_pixels = torch.empty_like(call.tensors[0])
    by_pixels, by_entries = _options("nce_grad_pixels", call), _options("nce_grad_entries", call)
    one_block = num_entries <= by_pixels["BLOCK_J"]
    slices = 1 if one_block else triton.cdiv(channels, by_pixels["BLOCK_V"])
    groups = triton.cdiv(num_entries, by_entries["BLOCK_J"]) * triton.cdiv(channels, by_entries["BLOCK_V"]) * batch
    chunks, tiles_per_chunk = _chunks(call, by_entries, groups)
    part_entries = torch.empty(batch, chunks, num_entries, channels, dtype=torch.float32, device=pixels.device)
    with on_device(pixels.device):
        along_rows = _rows(call)
        nce_grad_pixels[(batch * triton.cdiv(num_pixels, by_pixels["BLOCK_N"]) * slices,)](
            *call.tensors, *along_rows, *by_class, grad_pixels, *call.sizes, ONE_BLOCK=one_block, **flags, **by_pixels
        )
        nce_grad_entries[(groups * chunks,)](
            *call.tensors, *along_rows, *by_class, part_entries, *call.sizes, chunks, tiles_per_chunk,
            **flags, **by_entries,
        )  # fmt: skip
        grad_entries = sum_partials(part_entries, torch.float32, batch, chunks)
    return grad_pixels, grad_entries.view(entries.shape)
