"""The CUDA kernels of the compiled extension, with the arguments that the operators have.

Where an operator has no backward here, its gradients come from Triton's kernels or plain PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def attend(pixels: Tensor, pixel_pe: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = torch.ops.d2ls_fast.cuda_attend(
        pixels, _shared_encoding(pixel_pe), query, _tf32_allowed()
    )
    return result


def refine(pixels: Tensor, pixel_pe: Tensor, *more: Any) -> Tensor:
    refined: Tensor = torch.ops.d2ls_fast.cuda_refine(pixels, _shared_encoding(pixel_pe), *more, _tf32_allowed())
    return refined


def refine_attend(pixels: Tensor, pixel_pe: Tensor, *more: Any) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.d2ls_fast.cuda_refine_attend(
        pixels, _shared_encoding(pixel_pe), *more, _tf32_allowed()
    )
    return result


def classify(*arguments: Any) -> Tensor:
    logits: Tensor = torch.ops.d2ls_fast.cuda_classify(*arguments)
    return logits


def classify_labels(*arguments: Any) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = torch.ops.d2ls_fast.cuda_classify_labels(*arguments)
    return result


def dictionary_step(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = torch.ops.d2ls_fast.cuda_dictionary_step(*arguments)
    return result


def interact(pixels: Tensor, pixel_pe: Tensor, *more: Any) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.d2ls_fast.cuda_interact(pixels, _shared_encoding(pixel_pe), *more)
    return result


def classify_backward(*arguments: Any) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = torch.ops.d2ls_fast.cuda_classify_backward(*arguments)
    return gradients


def segmentation_sums(*arguments: Any) -> tuple[Tensor, ...]:
    *sums, wrong = torch.ops.d2ls_fast.cuda_segmentation_sums(*arguments)
    classes, ignore_index = sums[1].shape[0], arguments[7]
    expected = f"target must hold classes from 0 to {classes - 1} or ignore_index {ignore_index}"
    torch._assert_async(wrong == 0, expected)  # no wait for the device
    return tuple(sums)


def segmentation_sums_backward(*arguments: Any) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = torch.ops.d2ls_fast.cuda_segmentation_sums_backward(*arguments)
    return gradients


def nce_sums(*arguments: Any) -> tuple[Tensor, ...]:
    *sums, count = torch.ops.d2ls_fast.cuda_nce_sums(*arguments)
    return (*sums, count.long())


def nce_sums_backward(*arguments: Any) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = torch.ops.d2ls_fast.cuda_nce_sums_backward(*arguments)
    return gradients


def interact_labels(pixels: Tensor, pixel_pe: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = torch.ops.d2ls_fast.cuda_interact_labels(pixels, _shared_encoding(pixel_pe), *more)
    return result


def _shared_encoding(pixel_pe: Tensor) -> Tensor:
    """[N, C] where all images have the same encoding, so that one expanded over the batch is not copied out."""
    if pixel_pe.dim() == 3 and (pixel_pe.shape[0] == 1 or pixel_pe.stride(0) == 0):
        return pixel_pe[0]
    return pixel_pe


def _tf32_allowed() -> bool:
    # Not get_float32_matmul_precision(), which raises once a program has used this setting.
    return torch.backends.cuda.matmul.fp32_precision == "tf32"
