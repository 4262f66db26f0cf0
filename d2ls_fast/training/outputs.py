"""Validation during training and the files it leaves: last.ckpt, last.safetensors, best.safetensors."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import Dataset

from d2ls_fast.data import Item
from d2ls_fast.files import replacing
from d2ls_fast.models.checkpoint import ModelCard, save_checkpoint
from d2ls_fast.training.evaluate import evaluate_model
from d2ls_fast.training.metrics import Scores, scores_from_matrix
from d2ls_fast.training.module import SegmentationModule

LAST_STATE, LAST_MODEL, BEST_MODEL = "last.ckpt", "last.safetensors", "best.safetensors"


class ValidateAndSave(Callback):
    """Every ``every`` optimizer steps and after the last one: score the validation images, then save.

    ``last.ckpt`` holds the whole state of the run (for ``--resume``), ``last.safetensors`` the model, and
    ``best.safetensors`` the model with the highest mean IoU so far. Without validation images the best is the last.

    Args:
        folder: receives the files.
        card: describes the model; ``scores`` are filled in here.
        dataset: validation items, or ``None``.
        every: optimizer steps between validations.
        total_steps: optimizer steps of the whole run.
        exclude: class indices that the means leave out.
    """

    def __init__(
        self,
        folder: Path,
        card: ModelCard,
        dataset: Dataset[Item] | None,
        every: int,
        total_steps: int,
        exclude: list[int],
    ) -> None:
        self.folder = folder
        self.card = card
        self.dataset = dataset
        self.every = every
        self.total_steps = total_steps
        self.exclude = exclude
        self.scores: Scores | None = None
        self.best: Scores | None = None
        self.best_step = 0
        self.seconds = 0.0  # spent here, so that the training speed can leave it out
        self._handled_step = 0

    def state_dict(self) -> dict[str, Any]:
        matrix = None if self.best is None else self.best.matrix
        return {"best_matrix": matrix, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        matrix = state_dict["best_matrix"]
        self.best = None if matrix is None else scores_from_matrix(matrix, self.exclude)
        self.best_step = state_dict["best_step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._handled_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        step = trainer.global_step
        if step == self._handled_step or (step % self.every and step < self.total_steps):
            return
        self._handled_step = step
        started = time.perf_counter()
        assert isinstance(pl_module, SegmentationModule)
        self.scores = self._validate(trainer, pl_module)
        card = self.card if self.scores is None else dataclasses.replace(self.card, scores=self.scores.summary())
        if self._improved():
            self.best, self.best_step = self.scores, step
            save_checkpoint(self.folder / BEST_MODEL, pl_module.kept, card)
        save_checkpoint(self.folder / LAST_MODEL, pl_module.kept, card)
        with replacing(self.folder / LAST_STATE) as temporary:
            trainer.save_checkpoint(temporary)
        self.seconds += time.perf_counter() - started

    def _validate(self, trainer: Trainer, module: SegmentationModule) -> Scores | None:
        if self.dataset is None:
            return None
        scores = evaluate_model(
            module.kept,
            self.dataset,
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
