"""The state that ``--resume`` continues from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from d2ls_fast.errors import UserError
from d2ls_fast.training.config import TrainSettings

IDENTITY = "d2ls_fast"


def identity(settings: TrainSettings) -> dict[str, Any]:
    """What must not change between a run and its continuation: network, classes, bands, averaging."""
    network = {f"model.{key}": value for key, value in settings.model.model_dump(exclude={"pretrained"}).items()}
    return network | {
        "data.classes": settings.data.class_names,
        "data.bands": settings.data.bands,
        "ema": settings.ema is not None,
    }


def check_state(path: Path, settings: TrainSettings, total_steps: int) -> int:
    """The optimizer step at which the run in ``path`` stands.

    The file is read without executing code from it (``weights_only=True``).

    Raises:
        UserError: it is missing or damaged, belongs to another model, or the run is already complete.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no run to resume; leave out --resume, or give its folder with output=")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        stored, step = state[IDENTITY], int(state["global_step"])
    except OSError:
        raise
    except Exception as error:  # unpickling a damaged or foreign file fails in many ways
        reason = str(error).splitlines()[0][:120]
        raise UserError(
            f"{path}: not a training state of this package, or damaged ({reason}); start anew with --overwrite"
        ) from None
    for key, value in identity(settings).items():
        if stored.get(key) != value:
            raise UserError(
                f"{path}: checkpoint of another model: it was trained with {key}={stored.get(key)}, the settings say"
                f" {value}; restore {key}, or choose another folder with output="
            )
    if step >= total_steps:
        raise UserError(f"{path}: this run is complete at step {step}; give more steps or epochs to go on")
    return step
