"""``d2ls-fast predict``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from d2ls_fast.cli.evaluate import MERGES, PRESETS


class Device(str, Enum):
    """Where the model runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(str, Enum):
    """The type of the model's products."""

    fp32 = "fp32"
    bf16 = "bf16"


def chosen_device(device: Device) -> str:
    """What PyTorch calls the device, which must be there (:class:`UserError`)."""
    import torch

    from d2ls_fast.errors import UserError

    if device is Device.cuda and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    return "cuda" if device is Device.cuda or (device is Device.auto and torch.cuda.is_available()) else "cpu"


def predict(
    inputs: Annotated[list[str], typer.Argument(help="images, folders of images, or quoted globs", metavar="INPUT...")],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="trained model (.safetensors)")],
    output: Annotated[Path, typer.Option("--output", help="folder for the maps")],
    window: Annotated[int, typer.Option("--window", help="side of a window in model pixels")] = 512,
    overlap: Annotated[int, typer.Option("--overlap", help="pixels that neighbouring windows share at least")] = 64,
    batch: Annotated[int, typer.Option("--batch", help="windows, or augmented views of them, per model call")] = 4,
    confidence: Annotated[bool, typer.Option("--confidence", help="also write the labels' probability")] = False,
    overlay: Annotated[bool, typer.Option("--overlay/--no-overlay", help="write the coloured picture")] = True,
    nodata: Annotated[
        float | None, typer.Option("--nodata", help="value of pixels without data, if undeclared")
    ] = None,
    tta: Annotated[str, typer.Option("--tta", help="test-time augmentation of every window", metavar=PRESETS)] = "none",
    tta_merge: Annotated[
        str, typer.Option("--tta-merge", help="what the mean over its passes is taken of", metavar=MERGES)
    ] = "logits",
    device: Annotated[Device, typer.Option("--device", help="where the model runs")] = Device.auto,
    precision: Annotated[Precision, typer.Option("--precision", help="of the model's products")] = Precision.fp32,
) -> None:
    """Map images and scenes of any size: label rasters (georeferenced where the input is) and colour overlays."""
    import torch
    from rich.console import Console

    from d2ls_fast.files import writable_folder
    from d2ls_fast.inference.inputs import find_scenes
    from d2ls_fast.inference.predictor import Predictor
    from d2ls_fast.inference.report import SceneProgress, print_maps
    from d2ls_fast.inference.scene import SceneMap, map_scene
    from d2ls_fast.inference.sources import check_scene
    from d2ls_fast.models.checkpoint import load_checkpoint

    target = chosen_device(device)
    dtype = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}[precision]
    scenes = find_scenes(inputs)
    model, card = load_checkpoint(checkpoint)
    predictor = Predictor(model, card, target, dtype, window, overlap, batch, tta, tta_merge)
    for scene in scenes:
        check_scene(scene, card.bands)
    writable_folder(output, "--output")

    console = Console()
    maps: list[SceneMap] = []
    try:
        with SceneProgress(console, len(scenes)) as progress:
            for scene in scenes:
                maps.append(
                    map_scene(
                        predictor,
                        scene,
                        output,
                        confidence=confidence,
                        with_overlay=overlay,
                        nodata=nodata,
                        progress=progress.scene(scene),
                    )
                )
    finally:
        # What was finished before an error or an interruption is complete and stays: say so.
        print_maps(console, maps, card.classes)
