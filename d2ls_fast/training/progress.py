"""What a person watches while training."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from d2ls_fast.training.metrics import Scores
from d2ls_fast.training.outputs import ValidateAndSave


class TrainingProgress(Callback):
    """A progress bar over the whole run: loss, last mean IoU, images per second and time left.

    One plain line is printed after every validation. Comes after ``validation`` in the trainer's list of callbacks.

    Args:
        total_steps: optimizer steps of the whole run.
        batch_size: images that one batch holds.
        validation: the callback whose scores are shown.
        console: where to draw.
    """

    def __init__(self, total_steps: int, batch_size: int, validation: ValidateAndSave, console: Console) -> None:
        self.total_steps = total_steps
        self.batch_size = batch_size
        self.validation = validation
        self.console = console
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]}  mIoU {task.fields[mean_iou]}  {task.fields[speed]} images/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._images = 0
        self._started = 0.0
        self._reported: Scores | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.task = self.bar.add_task(
            "train", total=self.total_steps, completed=trainer.global_step, loss="-", mean_iou="-", speed="-"
        )
        self.bar.start()
        self._started = time.perf_counter()
        self._reported = self.validation.scores  # of an earlier session

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *arguments: Any) -> None:
        self._images += self.batch_size
        scores = self.validation.scores
        loss = f"{float(outputs['loss']) * trainer.accumulate_grad_batches:.3f}"
        mean_iou = "-" if scores is None else f"{scores.mean_iou:.3f}"
        speed = f"{self.images_per_second:.1f}"
        self.bar.update(self.task, completed=trainer.global_step, loss=loss, mean_iou=mean_iou, speed=speed)
        if scores is not self._reported and scores is not None:
            self._reported = scores
            self.console.print(
                f"step {trainer.global_step}/{self.total_steps}  loss {loss}  mIoU {mean_iou}"
                f"  mean F1 {scores.mean_f1:.3f}  OA {scores.overall_accuracy:.3f}  {speed} images/s",
                highlight=False,
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.bar.stop()

    @property
    def images_per_second(self) -> float:
        """Training images per second so far, data loading included, validation and saving left out."""
        seconds = time.perf_counter() - self._started - self.validation.seconds
        return self._images / seconds if self._images else 0.0
