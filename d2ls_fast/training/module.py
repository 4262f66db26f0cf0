"""What one training step does."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from d2ls_fast.errors import UserError
from d2ls_fast.models.base import SegmentationModel
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.optim import averaged_copy, build_optimizer, learning_rate_factor
from d2ls_fast.training.parallel import full_state, shard
from d2ls_fast.training.resume import IDENTITY, identity
from d2ls_fast.training.sampling import seed_batch


class SegmentationModule(LightningModule):
    """A segmentation model, its loss, its optimizer and, when asked for, its averaged weights.

    Args:
        model: the network that learns.
        loss: gives the total loss and its terms from the model's training output and labels.
        settings: the recipe.
        total_steps: optimizer steps of the whole run, for the learning-rate schedule.
        steps_per_epoch: for a schedule that changes the rate once an epoch.
        sharded: divide the parameters over the processes of the run.
    """

    def __init__(
        self,
        model: SegmentationModel,
        loss: nn.Module,
        settings: TrainSettings,
        total_steps: int,
        steps_per_epoch: int = 1,
        sharded: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.settings = settings
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self._batch = 0
        self._whole = [copy.deepcopy(model)] if sharded else []  # in a list: no part of this module's state
        self.average = None if settings.ema is None else averaged_copy(model, settings.ema)

    @property
    def kept(self) -> SegmentationModel:
        """The weights to evaluate and keep: the averaged ones where averaging is on.

        Those of a divided model are put together: every process must ask for them.
        """
        kept = self.model if self.average is None else self.average.module
        if self._whole:
            whole = self._whole[0]
            whole.load_state_dict(full_state(kept))
            return whole
        assert isinstance(kept, SegmentationModel)
        return kept

    def configure_model(self) -> None:
        if self._whole:
            assert self.device_mesh is not None
            for network in (self.model, *([] if self.average is None else [self.average.module])):
                shard(network, self.device_mesh["data_parallel"])

    def on_train_start(self) -> None:
        self._batch = self.global_step * self.settings.accumulate

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        # A function of the batch alone: a resumed run draws what the uninterrupted one would have drawn.
        seed_batch(self.settings.seed, self._batch * self.trainer.world_size + self.global_rank)
        self._batch += 1
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
        optimizer = build_optimizer(self.model, self.settings.optimizer)
        factor = learning_rate_factor(self.settings.schedule, self.total_steps, self.steps_per_epoch)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradients to a total norm of ``gradient_clip_val`` and refuse those that are not finite.

        With float16 a gradient that overflows now and then is normal: the scaler skips that step and scales less.
        """
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if math.isfinite(float(norm)):
            if gradient_clip_val is not None:
                torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), gradient_clip_val, norm)
            return
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and scaler.get_scale() > 1.0:
            return
        names = [name for name, p in self.model.named_parameters() if p.grad is not None and not _finite(p.grad)]
        raise UserError(
            f"step {self.global_step + 1}: the gradient of {names[0] if names else 'the model'} is not finite"
            f" ({len(names)} parameters in all); lower optimizer.lr, lengthen schedule.warmup or use precision=32,"
            " then --resume from the last checkpoint"
        )

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(*arguments, **named)
        if self.average is not None:
            self.average.update_parameters(self.model)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[IDENTITY] = identity(self.settings)


def _finite(gradient: Tensor) -> bool:
    return bool(gradient.isfinite().all())
