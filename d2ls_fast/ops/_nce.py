r"""The part of pixel_dictionary_nce that runs over the pixels: sums per image and class.

With :math:`\hat x_n = x_n / \max(|x_n|, 10^{-12})`, entries :math:`e_j` (unit vectors over the temperature),
:math:`s_{nj} = \hat x_n \cdot e_j` and :math:`S_{nk}` the log-sum-exp of :math:`s_{nj}` over the entries of class k:

- loss :math:`\sum_{n: y_n = k} (\mathrm{lse}_j s_{nj} - S_{nk})`, where ``rows``;
- positive :math:`\sum_{n: y_n = k} S_{nk}` and log_sum_exp :math:`\mathrm{lse}_n S_{nk}` over labelled pixels, where
  ``columns``; the latter is 0 for an image without labels;
- count of labels, and in a last column that of labels which are neither a class nor ignore_index.

With g the gradients of the first three and y the label of pixel n, that of a score is

.. math::
    \partial s_{nj} = g^{loss}_{y} e^{s_{nj} - \mathrm{lse}_j s_{nj}} + g^{lse}_k e^{s_{nj} - \mathrm{lse}_k}
        + [k = y] (g^{positive}_{y} - g^{loss}_{y}) e^{s_{nj} - S_{nk}}

for labelled pixels, k the class of entry j; then :math:`\partial e_j = \sum_n \partial s_{nj} \hat x_n` and
:math:`\partial x_n = (\sum_j \partial s_{nj} e_j - \hat x_n \sum_j \partial s_{nj} s_{nj}) / |x_n|`.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from d2ls_fast import _extension
from d2ls_fast.ops import _cuda
from d2ls_fast.ops._library import LIBRARY, define

_SHORTEST = 1e-12  # of F.normalize


def nce_sums_definition(
    pixels: Tensor,
    entries: Tensor,
    target: Tensor,
    prototypes: int,
    ignore_index: int,
    rows: bool,
    columns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sums in plain PyTorch, in the dtype of entries: what every kernel is compared with.

    Args:
        pixels: ``[B, N, C]``.
        entries: ``[B, K * P, C]``, float32 (float64 for float64 pixels).
        target: ``[B, N]``, int64.
        prototypes: P.
        ignore_index: label of pixels that take no part.
        rows, columns: which sums are wanted; the others are zero.

    Returns:
        loss, positive and log_sum_exp ``[B, K]`` in the dtype of entries; count ``[B, K + 1]``, int64.
    """
    scores = F.normalize(pixels.to(entries.dtype), dim=-1) @ entries.transpose(-1, -2)
    if prototypes > 1:
        scores = scores.unflatten(-1, (-1, prototypes)).logsumexp(-1)  # [B, N, K]
    member, count = _members(target, scores.shape[-1], ignore_index)
    weight = member.to(scores.dtype)
    loss, positive, log_sum_exp = (scores.new_zeros(count.shape[0], scores.shape[-1]) for _ in range(3))
    if rows:
        loss = -(scores.log_softmax(-1) * weight).sum(1)
    if columns:
        positive = (scores * weight).sum(1)
        # The lowest finite score, not -inf: an image without labels would otherwise give NaN gradients.
        masked = scores.masked_fill(~member.any(-1, keepdim=True), torch.finfo(scores.dtype).min)
        log_sum_exp = masked.logsumexp(1).masked_fill(~member.any(2).any(1, keepdim=True), 0.0)
    return loss, positive, log_sum_exp, count


def nce_sums_backward(
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
    """The backward formulas in PyTorch, for machines without the compiled extension; recomputes the scores."""
    x = pixels.to(entries.dtype)
    length = x.norm(dim=-1, keepdim=True)
    unit = x / length.clamp_min(_SHORTEST)
    scores = unit @ entries.transpose(-1, -2)
    member, _ = _members(target, log_sum_exp.shape[1], ignore_index)
    labelled = member.any(-1, keepdim=True)
    label = target.where(labelled.squeeze(-1), 0)
    grad = torch.zeros_like(scores)
    if rows:
        grad = grad + grad_loss.gather(1, label).unsqueeze(-1) * scores.softmax(-1)
    if columns:
        weight = torch.exp(scores - log_sum_exp.repeat_interleave(prototypes, 1).unsqueeze(1))
        grad = grad + grad_log_sum_exp.repeat_interleave(prototypes, 1).unsqueeze(1) * weight
    share = scores.unflatten(-1, (-1, prototypes)).softmax(-1)
    grad_own = (grad_positive if columns else 0.0) - (grad_loss if rows else torch.zeros_like(grad_loss))
    grad = grad + (share * (member * grad_own.unsqueeze(1)).unsqueeze(-1)).flatten(2)
    grad = grad.masked_fill(~labelled, 0.0)
    grad_entries = grad.transpose(-1, -2) @ unit
    along = (grad * scores).sum(-1, keepdim=True).masked_fill(length < _SHORTEST, 0.0)
    grad_pixels = (grad @ entries - along * unit) / length.clamp_min(_SHORTEST)
    return grad_pixels.to(pixels.dtype), grad_entries


def _members(target: Tensor, classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which pixel belongs to which class ``[B, N, K]``, and count."""
    used = target != ignore_index
    member = (target.unsqueeze(-1) == torch.arange(classes, device=target.device)) & used.unsqueeze(-1)
    strays = used & ((target < 0) | (target >= classes))
    return member, torch.cat((member.sum(1), strays.sum(1, keepdim=True)), 1)


# --- registration -------------------------------------------------------------------------------------------------

_TENSORS = "Tensor pixels, Tensor entries, Tensor target"
_OPTIONS = "int prototypes, int ignore_index, bool rows, bool columns"
_FORWARD = f"({_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)"
_BACKWARD = (
    f"({_TENSORS}, Tensor log_sum_exp, Tensor grad_loss, Tensor grad_positive, Tensor grad_log_sum_exp, {_OPTIONS})"
    " -> (Tensor, Tensor)"
)


def _fake_forward(pixels: Tensor, entries: Tensor, target: Tensor, prototypes: int, *options: Any) -> Any:
    b, classes = entries.shape[0], entries.shape[1] // prototypes
    loss, positive, log_sum_exp = (entries.new_empty((b, classes)) for _ in range(3))
    return loss, positive, log_sum_exp, target.new_empty((b, classes + 1))


def _fake_backward(pixels: Tensor, entries: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return pixels.new_empty(pixels.shape), entries.new_empty(entries.shape)


def _triton_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from d2ls_fast.kernels import nce as kernel  # imported at the first call: it imports triton

    return kernel.nce_forward(*arguments)


def _triton_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    from d2ls_fast.kernels import nce as kernel

    return kernel.nce_backward(*arguments)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:3], output[2])
    ctx.options = inputs[3:]


def _register(name: str, cpu: tuple[Any, Any], cuda: tuple[Any, Any]) -> None:
    """The operator with its backward operator: ``cpu`` and ``cuda`` are (forward, backward) kernels or Nones."""
    define(name, _FORWARD, fake=_fake_forward, cpu=cpu[0], cuda=cuda[0])
    define(f"{name}_backward", _BACKWARD, fake=_fake_backward, cpu=cpu[1], cuda=cuda[1])
    backward_operator = getattr(torch.ops.d2ls_fast, f"{name}_backward")

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_pixels, grad_entries = backward_operator(*ctx.saved_tensors, *gradients[:3], *ctx.options)
        return grad_pixels, grad_entries, None, None, None, None, None

    torch.library.register_autograd(f"d2ls_fast::{name}", backward, setup_context=_setup_context, lib=LIBRARY)


_PLAIN = (nce_sums_definition, nce_sums_backward)
_TRITON = (_triton_forward, _triton_backward)
_GPU = _TRITON if importlib.util.find_spec("triton") is not None else _PLAIN

_register("nce_sums", cpu=(None, None) if _extension.LOADED else _PLAIN, cuda=_GPU)
_register("nce_sums_triton", cpu=_TRITON, cuda=_TRITON)
_register("nce_sums_cuda", cpu=(None, None), cuda=(_cuda.nce_sums, _cuda.nce_sums_backward))
