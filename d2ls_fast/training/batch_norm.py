"""Batch norm over the joined batch of all processes."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, distributed, nn


def join_batch_norms(model: nn.Module, device: str) -> nn.Module:
    """``model`` with batch norms whose statistics span all processes; names and values of its state stay.

    On GPUs these are torch's SyncBatchNorm, which has no CPU form; there it is :class:`JoinedBatchNorm2d`.
    """
    if device == "cuda":
        converted: nn.Module = convert_sync_batchnorm(model)
        return converted
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(model, name, JoinedBatchNorm2d(child))
        else:
            join_batch_norms(child, device)
    return model


class JoinedBatchNorm2d(nn.BatchNorm2d):
    """The batch norm ``original`` (with timm's dropout and activation where it has them) over equal shares of a batch.

    Mean and variance are averaged over the processes, forward and backward.
    """

    def __init__(self, original: nn.BatchNorm2d) -> None:
        super().__init__(
            original.num_features,
            original.eps,
            original.momentum,
            original.affine,
            original.track_running_stats,
        )
        for name, value in (*original.named_parameters(recurse=False), *original.named_buffers(recurse=False)):
            setattr(self, name, value)
        self.train(original.training)
        extras: list[Any] = [original.drop, original.act] if isinstance(original, BatchNormAct2d) else []
        self.after = nn.Sequential(*extras)

    def forward(self, input: Tensor) -> Tensor:
        joined = self.training and distributed.is_initialized()
        result: Tensor = self.after(self._joined(input) if joined else super().forward(input))
        return result

    @torch.compiler.disable  # collectives inside a backbone cannot be traced
    def _joined(self, input: Tensor) -> Tensor:
        x = input.float()
        mean = _Average.apply(x.mean((0, 2, 3)))
        centred = x - mean[:, None, None]
        variance = _Average.apply(centred.square().mean((0, 2, 3)))
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach(), x.numel() // len(mean) * distributed.get_world_size())
        scale = torch.rsqrt(variance + self.eps)
        if not self.affine:
            return (centred * scale[:, None, None]).to(input.dtype)
        result = centred * (self.weight * scale)[:, None, None] + self.bias[:, None, None]
        return result.to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance * (count / max(1, count - 1)), rate)


class _Average(torch.autograd.Function):
    """The mean over the processes, which is its own adjoint."""

    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        total = share.clone()
        distributed.all_reduce(total)
        return total / distributed.get_world_size()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Average.forward(ctx, gradients[0])
