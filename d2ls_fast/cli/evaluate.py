"""``d2ls-fast evaluate``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

# The names of inference.tta, which --help should not wait for.
PRESETS = "none|flips|flips-scales-8|flips-scales-16|flips-rot90-scales"
MERGES = "logits|probabilities"


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
    tta: Annotated[str, typer.Option("--tta", help="test-time augmentation", metavar=PRESETS)] = "none",
    tta_merge: Annotated[
        str, typer.Option("--tta-merge", help="what the mean over its passes is taken of", metavar=MERGES)
    ] = "logits",
    tta_batch: Annotated[int, typer.Option("--tta-batch", help="its views per model call at most")] = 4,
) -> None:
    """Score a checkpoint: IoU, F1, precision and recall per class, overall accuracy, confusion matrix."""
    from rich.console import Console

    from d2ls_fast.config import load_settings
    from d2ls_fast.inference.tta import TTA
    from d2ls_fast.training.config import TrainSettings
    from d2ls_fast.training.score import score_checkpoint

    augmentation = TTA(tta, tta_merge, tta_batch)
    settings = load_settings(TrainSettings, config, overrides or [])
    score_checkpoint(settings, checkpoint, split.value, output, str(config), Console(), augmentation)
