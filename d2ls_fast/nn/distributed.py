r"""Sums and batches that span the processes of a distributed training run.

Every process has a share of the batch and the loss of the joined batch is wanted, with gradients whose *mean* over the
processes, which is what DDP and FSDP take, is the gradient of that loss. With :math:`S = \sum_r s_r` reduced over W
processes, every process computes the same :math:`f(S)` and its own part :math:`f'(S) \, \partial s_r` of the gradient;
the mean of these parts is the whole gradient if each is multiplied by W. So the value is reduced, the gradient is
multiplied by W, and the backward pass needs no communication of its own.

Nothing is communicated in a single process.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist


def world_size() -> int:
    """Number of processes of the default group; 1 where ``torch.distributed`` is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor summed over all processes, in one message.

    Args:
        tensors: of one floating-point dtype and device; the same shapes in every process.
    """
    world = world_size()
    if world == 1:
        return list(tensors)
    own = torch.cat([tensor.flatten() for tensor in tensors])
    total = own.detach().clone()
    dist.all_reduce(total)
    parts = _with_gradient(total, own, world).split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def join_batches(batch: Tensor) -> Tensor:
    """``[B, ...]`` of every process, in their order: ``[W * B, ...]``. B must be the same in all of them."""
    world = world_size()
    if world == 1:
        return batch
    joined = batch.new_empty((world * batch.shape[0], *batch.shape[1:]))
    dist.all_gather_into_tensor(joined, batch.detach().contiguous())
    before, own, after = joined.split(
        [dist.get_rank() * batch.shape[0], batch.shape[0], joined.shape[0] - (dist.get_rank() + 1) * batch.shape[0]]
    )
    return torch.cat((before, _with_gradient(own, batch, world), after))


def _with_gradient(value: Tensor, source: Tensor, factor: int) -> Tensor:
    """``value``, whose gradient goes to ``source``, multiplied by ``factor``."""
    return value + factor * (source - source.detach())
