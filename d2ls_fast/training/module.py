"""What one training step does."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from d2ls_fast.errors import UserError
from d2ls_fast.models.base import SegmentationModel
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.optim import averaged_copy, learning_rate_factor, parameter_groups
from d2ls_fast.training.resume import IDENTITY, identity


class SegmentationModule(LightningModule):
    """A segmentation model, its loss, its optimizer and, when asked for, its averaged weights.

    Args:
        model: the network that learns.
        loss: gives the total loss and its terms from the model's training output and labels.
        settings: the recipe.
        total_steps: optimizer steps of the whole run, for the learning-rate schedule.
    """

    def __init__(self, model: SegmentationModel, loss: nn.Module, settings: TrainSettings, total_steps: int) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.settings = settings
        self.total_steps = total_steps
        self.average = None if settings.ema is None else averaged_copy(model, settings.ema)

    @property
    def kept(self) -> SegmentationModel:
        """The weights to evaluate and keep: the averaged ones where averaging is on."""
        kept = self.model if self.average is None else self.average.module
        assert isinstance(kept, SegmentationModel)
        return kept

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        images = batch["image"]
        if self.settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        total, terms = self.loss(self.model(images, keep_logits=False), batch["label"])
        value = float(total.detach())
        if not math.isfinite(value):
            shown = ", ".join(f"{name} {float(term):.4g}" for name, term in terms.items())
            raise UserError(
                f"step {self.global_step + 1}: the loss is {value} ({shown}); lower optimizer.lr, lengthen"
                " schedule.warmup or use precision=32, then --resume from the last checkpoint"
            )
        rate = self.trainer.optimizers[0].param_groups[-1]["lr"]
        metrics = {"loss": total, "lr": rate} | {f"loss_{name}": term for name, term in terms.items()}
        self.log_dict(metrics | {"step": float(self.global_step + 1)})  # Lightning itself counts from 0
        return total

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, self.settings.optimizer), betas=self.settings.optimizer.betas
        )
        factor = learning_rate_factor(self.settings.schedule, self.total_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(*arguments, **named)
        if self.average is not None:
            self.average.update_parameters(self.model)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[IDENTITY] = identity(self.settings)
