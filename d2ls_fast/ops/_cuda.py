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


def attend_backward(
    pixels: Tensor,
    pixel_pe: Tensor,
    query: Tensor,
    context: Tensor,
    log_sum_exp: Tensor,
    grad_context: Tensor,
    grad_log_sum_exp: Tensor,
    need_pe_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.d2ls_fast.cuda_attend_backward(
        pixels,
        pixel_pe if need_pe_grad else _shared_encoding(pixel_pe),
        query,
        log_sum_exp,
        *_grad_and_delta(context, grad_context, grad_log_sum_exp, query.dtype),
        need_pe_grad,
        _tf32_allowed(),
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


def refine_backward(
    pixels: Tensor,
    pixel_pe: Tensor,
    key: Tensor,
    key_bias: Tensor,
    value: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    query: Tensor | None,
    context: Tensor | None,
    log_sum_exp: Tensor | None,
    grad_refined: Tensor,
    grad_context: Tensor | None,
    grad_log_sum_exp: Tensor | None,
    num_heads: int,
    eps: float,
    need_pe_grad: bool,
) -> tuple[Tensor, ...]:
    """Of refine_attend, or without a query of refine."""
    encoding = pixel_pe if need_pe_grad else _shared_encoding(pixel_pe)
    arguments = (pixels, encoding, key, key_bias, value, out_bias, norm_weight, norm_bias)
    options = (num_heads, eps, need_pe_grad, _tf32_allowed())
    gradients: tuple[Tensor, ...]
    if query is None or context is None or log_sum_exp is None:
        gradients = torch.ops.d2ls_fast.cuda_refine_backward(*arguments, grad_refined, *options)
        return (*gradients, pixels.new_empty((0,)))
    assert grad_context is not None and grad_log_sum_exp is not None
    grad, delta = _grad_and_delta(context, grad_context, grad_log_sum_exp, query.dtype)
    gradients = torch.ops.d2ls_fast.cuda_refine_attend_backward(
        *arguments, query, log_sum_exp, grad_refined, grad, delta, *options
    )
    return gradients


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


def _grad_and_delta(context: Tensor, grad: Tensor, grad_lse: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The gradient of the context as the kernels multiply with it, and delta of what was rounded.

    The rows of dS then sum to the gradient of the log-sum-exp.
    """
    grad = grad.to(dtype)
    return grad, (grad.float() * context).sum(-1) - grad_lse.float()


def _shared_encoding(pixel_pe: Tensor) -> Tensor:
    """[N, C] where all images have the same encoding, so that one expanded over the batch is not copied out."""
    if pixel_pe.dim() == 3 and (pixel_pe.shape[0] == 1 or pixel_pe.stride(0) == 0):
        return pixel_pe[0]
    return pixel_pe


def _tf32_allowed() -> bool:
    # Not get_float32_matmul_precision(), which raises once a program has used this setting.
    return torch.backends.cuda.matmul.fp32_precision == "tf32"
