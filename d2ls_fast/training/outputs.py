"""Validation during training and the files it leaves: the state of the run, last.safetensors, best.safetensors."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import Dataset, Subset

from d2ls_fast.data import Item
from d2ls_fast.models.base import SegmentationModel
from d2ls_fast.models.checkpoint import ModelCard, save_checkpoint
from d2ls_fast.training.evaluate import evaluate_model
from d2ls_fast.training.metrics import Scores, scores_from_matrix
from d2ls_fast.training.module import SegmentationModule
from d2ls_fast.training.resume import save_state

LAST_MODEL, BEST_MODEL = "last.safetensors", "best.safetensors"


class ValidateAndSave(Callback):
    """Every ``every`` optimizer steps and after the last one: score the validation images, then save.

    ``last.ckpt`` holds the whole state of the run (for ``--resume``), ``previous.ckpt`` the one before it,
    ``last.safetensors`` the model, and ``best.safetensors`` the model with the highest mean IoU so far. Without
    validation images the best is the last. Every process validates its share of the images and the first one writes.

    Args:
        folder: receives the files.
        card: describes the model; ``scores`` are filled in here.
        dataset: validation items, or ``None``.
        every: optimizer steps between validations.
        total_steps: optimizer steps of the whole run.
        exclude: class indices that the means leave out.
        state_every: optimizer steps between saved states besides those at validations.
        keep_previous: False where the run continues from ``previous.ckpt``: the first state saved leaves it alone.
    """

    def __init__(
        self,
        folder: Path,
        card: ModelCard,
        dataset: Dataset[Item] | None,
        every: int,
        total_steps: int,
        exclude: list[int],
        state_every: int | None = None,
        keep_previous: bool = True,
    ) -> None:
        self.folder = folder
        self.card = card
        self.dataset = dataset
        self.every = every
        self.total_steps = total_steps
        self.exclude = exclude
        self.state_every = state_every or every
        self.keep_previous = keep_previous
        self.scores: Scores | None = None
        self.best: Scores | None = None
        self.best_step = 0
        self.seconds = 0.0  # spent here, so that the training speed can leave it out
        self._handled_step = 0

    def state_dict(self) -> dict[str, Any]:
        best, last = (None if scores is None else scores.matrix for scores in (self.best, self.scores))
        return {"best_matrix": best, "best_step": self.best_step, "matrix": last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.scores = (
            None if matrix is None else scores_from_matrix(matrix, self.exclude)
            for matrix in (state_dict["best_matrix"], state_dict["matrix"])
        )
        self.best_step = state_dict["best_step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._handled_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        step = trainer.global_step
        if step == self._handled_step:  # a batch whose gradients are still being accumulated
            return
        self._handled_step = step
        validates = step % self.every == 0 or step >= self.total_steps
        if not validates and step % self.state_every:
            return
        started = time.perf_counter()
        assert isinstance(pl_module, SegmentationModule)
        if validates:
            self._validate_and_save(trainer, pl_module)
        save_state(trainer, self.folder, self.keep_previous)
        self.keep_previous = True
        self.seconds += time.perf_counter() - started

    def _validate_and_save(self, trainer: Trainer, module: SegmentationModule) -> None:
        model = module.kept
        self.scores = self._validate(trainer, module, model)
        card = self.card if self.scores is None else dataclasses.replace(self.card, scores=self.scores.summary())
        improved = self._improved()
        if improved:
            self.best, self.best_step = self.scores, trainer.global_step
        if trainer.is_global_zero:
            if improved:
                save_checkpoint(self.folder / BEST_MODEL, model, card)
            save_checkpoint(self.folder / LAST_MODEL, model, card)

    def _validate(self, trainer: Trainer, module: SegmentationModule, model: SegmentationModel) -> Scores | None:
        if self.dataset is None:
            return None
        share = range(trainer.global_rank, len(self.dataset), trainer.world_size)  # type: ignore[arg-type]
        scores = evaluate_model(
            model,
            self.dataset if trainer.world_size == 1 else Subset(self.dataset, share),
            len(self.card.classes),
            self.exclude,
            module.device,
            module.settings.precision,
        )
        for logger in trainer.loggers:
            logger.log_metrics(scores.summary(), trainer.global_step)
        return scores

    def _improved(self) -> bool:
        if self.scores is None or self.best is None or math.isnan(self.best.mean_iou):
            return True
        return self.scores.mean_iou > self.best.mean_iou
