"""The state that ``--resume`` continues from."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from d2ls_fast.errors import UserError
from d2ls_fast.files import replacing
from d2ls_fast.training.config import TrainSettings

IDENTITY = "d2ls_fast"
LAST_STATE, PREVIOUS_STATE = "last.ckpt", "previous.ckpt"


def save_state(trainer: Trainer, folder: Path, keep_previous: bool) -> None:
    """Write ``last.ckpt``; with ``keep_previous`` the one before it becomes ``previous.ckpt``.

    Every process calls it, the first one writes. A kill at any moment leaves at least one whole state: ``last.ckpt``
    only ever changes by renaming, and between the two renames ``previous.ckpt`` is what :func:`find_state` finds.
    """
    path = folder / LAST_STATE
    if trainer.is_global_zero:
        with replacing(path) as temporary:
            trainer.save_checkpoint(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())  # a name must not reach the disk before its contents
            if keep_previous and path.exists():
                os.replace(path, folder / PREVIOUS_STATE)
    else:
        trainer.save_checkpoint(path)
    trainer.strategy.barrier()  # nobody goes on, or ends, before the file has its name


def find_state(folder: Path, previous: bool) -> Path:
    """The state to continue from: the last one, or the one before it where asked for or where the last is missing.

    Raises:
        UserError: the previous one was asked for and there is none.
    """
    last, earlier = folder / LAST_STATE, folder / PREVIOUS_STATE
    if previous and not earlier.is_file():
        raise UserError(f"{earlier}: there is no earlier state; continue with --resume, or start anew with --overwrite")
    return earlier if previous or (earlier.is_file() and not last.is_file()) else last


def identity(settings: TrainSettings) -> dict[str, Any]:
    """What must not change between a run and its continuation: network, classes, bands, protocol, averaging."""
    network = {f"model.{key}": value for key, value in settings.model.model_dump(exclude={"pretrained"}).items()}
    return network | {
        "data.classes": settings.data.class_names,
        "data.bands": settings.data.bands,
        "protocol": settings.protocol,
        "ema": settings.ema is not None,
        "optimizer.lookahead": settings.optimizer.lookahead is not None,
    }


def check_state(path: Path, settings: TrainSettings, total_steps: int, reported: bool) -> int:
    """The optimizer step at which the run in ``path`` stands.

    The file is read without executing code from it (``weights_only=True``). A run that was killed after its last
    step, before its report was written (not ``reported``), may be continued to write it.

    Raises:
        UserError: it is missing or damaged, belongs to another model, or the run is already complete.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no run to resume; leave out --resume, or give its folder with output=")
    try:
        _check_sums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        stored, step = state[IDENTITY], int(state["global_step"])
    except OSError:
        raise
    except Exception as error:  # unpickling a damaged or foreign file fails in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        earlier = path.with_name(PREVIOUS_STATE)
        remedy = "start anew with --overwrite"
        if path != earlier and earlier.is_file():
            remedy = f"continue from {PREVIOUS_STATE} beside it with --resume-previous"
        raise UserError(f"{path}: not a training state of this package, or damaged ({reason}); {remedy}") from None
    for key, value in identity(settings).items():
        if stored.get(key) != value:
            raise UserError(
                f"{path}: checkpoint of another model: it was trained with {key}={stored.get(key)}, the settings say"
                f" {value}; restore {key}, or choose another folder with output="
            )
    if step > total_steps or (step == total_steps and reported):
        raise UserError(f"{path}: this run is complete at step {step}; give more steps or epochs to go on")
    return step


def _check_sums(path: Path) -> None:
    """Compare the file with the checksums it carries: torch does not."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"checksum of {damaged} differs")
