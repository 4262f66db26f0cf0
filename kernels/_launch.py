"""What the launchers share: encodings, the TF32 switch, the current device, and sums and merges of partial results."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from . import configs
from ._attend_forward import merge_chunks
from ._tiles import sum_parts

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def shared_encoding(pixel_pe: Tensor) -> tuple[Tensor, bool]:
    """(contiguous encoding, read by all images alike); one expanded over the batch is not copied out."""
    if pixel_pe.dim() == 3 and (pixel_pe.shape[0] == 1 or pixel_pe.stride(0) == 0):
        pixel_pe = pixel_pe[0]
    return pixel_pe.contiguous(), pixel_pe.dim() == 2


def tf32_allowed() -> bool:
    """Whether float32 products may run as TF32."""
    # Not get_float32_matmul_precision(), which raises once a program has used this setting.
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def sum_partials(partials: Tensor, dtype: torch.dtype, groups: int, parts: int) -> Tensor:
    """[groups * parts * size] -> [groups, size] in dtype, summed in order in float32."""
    size = partials.numel() // (groups * parts)
    out = torch.empty(groups, size, dtype=dtype, device=partials.device)
    block = 1024
    sum_parts[(groups * triton.cdiv(size, block),)](partials, out, parts, size, BLOCK=block, enable_fp_fusion=True)
    return out


def merge_context(part_context: Tensor, part_max: Tensor, part_sum: Tensor) -> tuple[Tensor, Tensor]:
    """Context [B, J, C] and log-sum-exp [B, J] from the chunks' running softmax: [B, chunks, J, C], [B, chunks, J]."""
    batch, chunks, rows, channels = part_context.shape
    context = torch.empty(batch, rows, channels, dtype=torch.float32, device=part_context.device)
    lse = torch.empty(batch, rows, dtype=torch.float32, device=part_context.device)
    merge_chunks[(batch * rows,)](
        part_context, part_max, part_sum, context, lse, rows, chunks,
        C=channels, BLOCK_C=configs.power_of_two(channels), BLOCK_PARTS=4, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return context, lse
