"""``d2ls-fast evaluate``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Split(str, Enum):
    """The splits that hold images a model was not trained on."""

    val = "val"
    test = "test"


def evaluate(
    config: Annotated[Path, typer.Argument(help="the recipe that names the data", metavar="CONFIG")],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="model to score (.safetensors)")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="settings to change, such as data.root=DIR", metavar="[KEY=VALUE]...")
    ] = None,
    split: Annotated[Split, typer.Option("--split", help="images to score")] = Split.val,
    output: Annotated[
        Path | None, typer.Option("--output", help="folder for the JSON and the picture; default: the checkpoint's")
    ] = None,
) -> None:
    """Score a checkpoint: IoU, F1, precision and recall per class, overall accuracy, confusion matrix."""
    from rich.console import Console

    from d2ls_fast.config import load_settings
    from d2ls_fast.training.config import TrainSettings
    from d2ls_fast.training.score import score_checkpoint

    settings = load_settings(TrainSettings, config, overrides or [])
    score_checkpoint(settings, checkpoint, split.value, output, origin=str(config), console=Console())
