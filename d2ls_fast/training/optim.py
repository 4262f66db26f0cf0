"""Optimizer, learning-rate schedule and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel

from d2ls_fast.training.config import OptimizerSettings, ScheduleSettings
from d2ls_fast.training.lookahead import LookaheadAdamW


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Trainable parameters in up to four named groups: backbone or head, decayed or not.

    Vectors and scalars (norm weights, biases) are decayed only with ``decay_vectors``. Parameters below
    ``model.backbone`` learn at ``lr * backbone_lr``; with ``backbone_lr: 0`` they stay as they are.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        backbone, decayed = name.startswith("backbone."), parameter.ndim > 1 or settings.decay_vectors
        key = f"{'backbone' if backbone else 'head'}-{'decay' if decayed else 'no_decay'}"
        group = groups.setdefault(
            key,
            {
                "name": key,
                "params": [],
                "lr": settings.lr * (settings.backbone_lr if backbone else 1.0),
                "weight_decay": settings.weight_decay if decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW over :func:`parameter_groups`, inside Lookahead where asked for."""
    groups, lookahead = parameter_groups(model, settings), settings.lookahead
    # What a divided parameter costs is the call, not the arithmetic: all at once.
    divided = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    options: dict[str, Any] = {"betas": settings.betas, "foreach": True if divided else None}
    if lookahead is None:
        return torch.optim.AdamW(groups, **options)
    return LookaheadAdamW(groups, lookahead.steps, lookahead.alpha, **options)


def learning_rate_factor(
    settings: ScheduleSettings, total_steps: int, steps_per_epoch: int = 1
) -> Callable[[int], float]:
    """Factor on the base rate for the optimizer step about to be taken (0-based).

    With ``per_epoch`` the decay stands still within each ``steps_per_epoch`` steps; the warm-up never does.
    """

    def factor(step: int) -> float:
        if step < settings.warmup:
            return (step + 1) / (settings.warmup + 1)
        if settings.per_epoch:
            step = max(settings.warmup, step - step % steps_per_epoch)
        progress = min(1.0, (step - settings.warmup) / max(1, total_steps - settings.warmup))
        if settings.kind == "constant":
            return 1.0
        shape = (
            0.5 * (1 + math.cos(math.pi * progress)) if settings.kind == "cosine" else (1 - progress) ** settings.power
        )
        return settings.final + (1 - settings.final) * shape

    return factor


def averaged_copy(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of ``model``'s weights, started fast: decay min(d, (1 + n) / (10 + n)) at update n.

    Buffers (BatchNorm statistics) are copied. The copy takes no gradients.
    """

    def update(averages: Any, current: Any, updates: Any) -> None:
        count = float(updates)
        weight = 1 - min(decay, (1 + count) / (10 + count))
        with torch.no_grad():
            torch._foreach_lerp_(averages, current, weight)

    averaged = AveragedModel(model, multi_avg_fn=update)
    averaged.requires_grad_(False)
    return averaged
