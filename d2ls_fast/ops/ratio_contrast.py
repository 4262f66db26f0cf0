"""ratio_contrast: the release's contrastive term, a ratio over the dictionary alone."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from d2ls_fast import _extension
from d2ls_fast.backends import select
from d2ls_fast.ops._library import LIBRARY, define


def ratio_contrast(dictionary: Tensor, eps: float = 1e-6) -> Tensor:
    r"""Pull an entry's versions across the batch together, push different entries apart.

    With :math:`\mu_k = \mathrm{mean}_b D_{bk}`:

    .. math::
        \frac{\mathrm{mean}_{b,k} |D_{bk} - \mu_k|^2}{\mathrm{mean}_{j<k} |\mu_j - \mu_k|^2 + \epsilon}

    Zero for a batch of one, and for a single entry (there is nothing to push apart).

    Args:
        dictionary: D, ``[B, K, C]``, any float dtype; computed in float32 (float64 for float64).
        eps: positive and finite.

    Returns:
        scalar, float32 (float64).

    Raises:
        ValueError: dictionary or eps is not of that kind.
        BackendError: a forced back end cannot serve the call.

    Differentiable once in dictionary. Bitwise repeatable.

    Source: the released code of D2LS (arXiv 2503.06683), where it is taken of the dynamic dictionary D_0.
    """
    if dictionary.dim() != 3 or 0 in dictionary.shape:
        raise ValueError(f"ratio_contrast: dictionary must be [B, K, C], not empty, got {tuple(dictionary.shape)}")
    if not dictionary.dtype.is_floating_point:
        raise ValueError(f"ratio_contrast: dictionary must be a floating-point tensor, got {dictionary.dtype}")
    if not 0 < eps < float("inf"):
        raise ValueError(f"ratio_contrast: eps must be positive and finite, got {eps}")
    name = select("ratio_contrast", dictionary)
    with torch.autocast(dictionary.device.type, enabled=False):
        wide = dictionary.to(torch.promote_types(dictionary.dtype, torch.float32))
        if name in ("reference", "torch"):
            return ratio_contrast_definition(wide, eps)
        operators = torch.ops.d2ls_fast
        operator = operators.ratio_contrast_triton if name == "triton" else operators.ratio_contrast
        loss: Tensor = operator(wide, eps)
        return loss


def ratio_contrast_definition(dictionary: Tensor, eps: float) -> Tensor:
    """The operator in plain PyTorch, in the dtype of dictionary."""
    entries = dictionary.shape[1]
    mean = dictionary.mean(0)
    intra = (dictionary - mean).square().sum(-1).mean()
    if entries < 2:
        return intra * 0.0
    # mean over pairs j < k of |mu_j - mu_k|^2 = 2 / (K - 1) * sum_k |mu_k - mean(mu)|^2: no K x K x C tensor.
    inter = (mean - mean.mean(0)).square().sum() * (2.0 / (entries - 1))
    return intra / (inter + eps)


def plain_backward(dictionary: Tensor, grad: Tensor, eps: float) -> Tensor:
    """The backward formula in PyTorch, for machines without the compiled extension."""
    batch, entries, _ = dictionary.shape
    if entries < 2:
        return torch.zeros_like(dictionary)
    mean = dictionary.mean(0)
    within, between = dictionary - mean, mean - mean.mean(0)
    intra = within.square().sum(-1).mean()
    inter = between.square().sum() * (2.0 / (entries - 1)) + eps
    pull = 2.0 / (batch * entries) / inter
    push = intra / inter.square() * (4.0 / (batch * (entries - 1)))
    return grad * (pull * within - push * between)


# --- registration -------------------------------------------------------------------------------------------------


def _fake_forward(dictionary: Tensor, eps: float) -> Tensor:
    return dictionary.new_empty(())


def _fake_backward(dictionary: Tensor, grad: Tensor, eps: float) -> Tensor:
    return dictionary.new_empty(dictionary.shape)


def _triton_forward(dictionary: Tensor, eps: float) -> Tensor:
    from d2ls_fast.kernels import ratio as kernel  # imported at the first call: it imports triton

    return kernel.ratio_forward(dictionary, eps)


def _triton_backward(dictionary: Tensor, grad: Tensor, eps: float) -> Tensor:
    from d2ls_fast.kernels import ratio as kernel

    return kernel.ratio_backward(dictionary, grad, eps)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.eps = inputs[1]


def _register(name: str, cpu: tuple[Any, Any], cuda: tuple[Any, Any]) -> None:
    """The operator with its backward operator: ``cpu`` and ``cuda`` are (forward, backward) kernels or Nones."""
    define(name, "(Tensor dictionary, float eps) -> Tensor", fake=_fake_forward, cpu=cpu[0], cuda=cuda[0])
    define(
        f"{name}_backward",
        "(Tensor dictionary, Tensor grad, float eps) -> Tensor",
        fake=_fake_backward,
        cpu=cpu[1],
        cuda=cuda[1],
    )
    backward_operator = getattr(torch.ops.d2ls_fast, f"{name}_backward")

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return backward_operator(*ctx.saved_tensors, grad, ctx.eps), None

    torch.library.register_autograd(f"d2ls_fast::{name}", backward, setup_context=_setup_context, lib=LIBRARY)


_PLAIN = (ratio_contrast_definition, plain_backward)
_TRITON = (_triton_forward, _triton_backward)
_GPU = _TRITON if importlib.util.find_spec("triton") is not None else _PLAIN

_register("ratio_contrast", cpu=(None, None) if _extension.LOADED else _PLAIN, cuda=_GPU)
_register("ratio_contrast_triton", cpu=_TRITON, cuda=_TRITON)
