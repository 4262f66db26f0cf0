"""``d2ls-fast predict``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from d2ls_fast.cli.evaluate import MERGES, PRESETS

if TYPE_CHECKING:
    import torch


class Device(str, Enum):
    """Where the model runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(str, Enum):
    """The type of the model's products."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Blend(str, Enum):
    """How overlapping windows share a pixel."""

    cosine = "cosine"
    gaussian = "gaussian"
    none = "none"


class Dictionary(str, Enum):
    """What shares one adapted dictionary."""

    window = "window"
    scene = "scene"


def torch_dtype(precision: Precision) -> torch.dtype:
    """What PyTorch calls it."""
    import torch

    return {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}[precision]


def predict(
    inputs: Annotated[list[str], typer.Argument(help="images, folders of images, or quoted globs", metavar="INPUT...")],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="trained model (.safetensors)")],
    output: Annotated[Path, typer.Option("--output", help="folder for the maps")],
    window: Annotated[
        int | None, typer.Option("--window", help="side of a window in model pixels  [default: of the training crops]")
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option("--overlap", help="pixels that neighbouring windows share at least  [default: 3/8 window]"),
    ] = None,
    blend: Annotated[Blend, typer.Option("--blend", help="how windows share a pixel")] = Blend.cosine,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            help="windows, or views of them, per model call  [default: of one 512 x 512 in all; on a GPU eight]",
        ),
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option("--max-memory", help="of this process, like 2GB: windows and batch are chosen to fit")
    ] = None,
    confidence: Annotated[bool, typer.Option("--confidence", help="also write the labels' probability")] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="also write every class's probability, 0..255")
    ] = False,
    polygons: Annotated[bool, typer.Option("--polygons", help="also write the areas of one class as polygons")] = False,
    smallest_area: Annotated[
        float, typer.Option("--smallest-area", help="of a polygon, in square units of the scene's coordinates")
    ] = 0.0,
    cog: Annotated[bool, typer.Option("--cog", help="write Cloud-Optimised GeoTIFFs")] = False,
    overlay: Annotated[bool, typer.Option("--overlay/--no-overlay", help="write the coloured picture")] = True,
    nodata: Annotated[
        float | None, typer.Option("--nodata", help="value of pixels without data, if undeclared")
    ] = None,
    tta: Annotated[str, typer.Option("--tta", help="test-time augmentation of every window", metavar=PRESETS)] = "none",
    tta_merge: Annotated[
        str, typer.Option("--tta-merge", help="what the mean over its passes is taken of", metavar=MERGES)
    ] = "logits",
    dictionary: Annotated[
        Dictionary,
        typer.Option("--dictionary", help="of D2LS: adapted to every window, or one to the whole scene (more passes)"),
    ] = Dictionary.window,
    device: Annotated[Device, typer.Option("--device", help="where the model runs")] = Device.auto,
    precision: Annotated[Precision, typer.Option("--precision", help="of the model's products")] = Precision.fp32,
    compiled: Annotated[bool, typer.Option("--compile", help="run the model through torch.compile")] = False,
    graph: Annotated[bool, typer.Option("--graph", help="replay the model as a CUDA graph (GPU only)")] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="go on with interrupted maps, or begin them anew")
    ] = True,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="map the other scenes where one fails; list the failures at the end")
    ] = False,
) -> None:
    """Map images and scenes of any size: label rasters (georeferenced where the input is) and colour overlays.

    Under torchrun the scenes, or the rows of fewer scenes than processes, are shared out.
    """
    from rich.console import Console

    from d2ls_fast.errors import UserError
    from d2ls_fast.inference.inputs import find_scenes
    from d2ls_fast.inference.predictor import Predictor
    from d2ls_fast.inference.products import Wanted
    from d2ls_fast.inference.run import MapRun, map_scenes

    if graph and compiled:
        raise UserError("--graph and --compile: a model is replayed or compiled; give one of them")
    scenes = find_scenes(inputs)
    predictor = Predictor(
        checkpoint,
        device.value,
        torch_dtype(precision),
        "graph" if graph else compiled,
        window=window,
        overlap=overlap,
        blend=blend.value,
        batch=batch,
        tta=tta,
        tta_merge=tta_merge,
        dictionary=dictionary.value,
    )
    wanted = Wanted(
        confidence=confidence,
        probabilities=probabilities,
        polygons=polygons,
        smallest_area=smallest_area,
        overlay=overlay,
        cog=cog,
    )
    map_scenes(
        MapRun(predictor, scenes, output, wanted, nodata, resume, keep_going),
        Console(),
        max_memory=max_memory,
        fixed_window=window is not None,
    )
