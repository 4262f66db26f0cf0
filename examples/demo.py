"""The main job from end to end: train on the carried sample, score, map a real scene, measure the speed.

    python examples/demo.py             # or: make demo
    python examples/demo.py --retrain   # train again although an up-to-date model is there

Run it from the repository's root. Everything is written below demo/.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from d2ls_fast.benchmarks import harness, machine
from d2ls_fast.benchmarks.cases import Sizes, head_cases
from d2ls_fast.cli.evaluate import Split, evaluate
from d2ls_fast.cli.predict import predict
from d2ls_fast.cli.train import train
from d2ls_fast.config import load_settings
from d2ls_fast.data import DataSplits, build_datasets
from d2ls_fast.data.pictures import rgb_bands, stretch
from d2ls_fast.errors import UserError
from d2ls_fast.files import replacing, write_json
from d2ls_fast.inference.predictor import Predictor
from d2ls_fast.inference.render import side_by_side
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.fit import METRICS, PAGE, REPORT, SETTINGS
from d2ls_fast.training.outputs import BEST_MODEL

TILES_SHOWN = 4


def demo(
    recipe: Annotated[Path, typer.Option(help="what to train")] = Path("configs/demo.yaml"),
    scene: Annotated[Path, typer.Option(help="what to map")] = Path("examples/sample/sentinel2-scene.tif"),
    output: Annotated[Path, typer.Option(help="folder for everything written")] = Path("demo"),
    retrain: Annotated[bool, typer.Option("--retrain", help="train even if an up-to-date model is there")] = False,
) -> None:
    """Train, evaluate, map and measure; print the scores, the speed and where the pictures are."""
    console, started = Console(), time.perf_counter()
    run = output / "run"
    overrides = [f"output={run}"]
    settings = load_settings(TrainSettings, recipe, overrides)

    console.rule("1 training")
    if not retrain and is_up_to_date(run, settings):
        console.print(f"{run / BEST_MODEL} was trained with exactly these settings: reused; --retrain trains again")
    else:
        train(recipe, overrides, overwrite=True)

    console.rule("2 scores on the held-out part")
    data = build_datasets(settings.data)
    split = Split.test if len(data.test) else Split.val
    checkpoint = run / BEST_MODEL
    evaluate(recipe, checkpoint, overrides, split, output / "evaluation")
    pictures = [output / "evaluation" / f"{split.value}.png"]
    pictures += [draw_tiles(checkpoint, data, split, output / "held-out.png")]
    pictures += [draw_curve(run / METRICS, output / "training.png")]

    console.rule("3 the map of a scene")
    predict([str(scene)], checkpoint, output / "map", confidence=True)
    pictures += [output / "map" / f"{scene.stem}_overlay.png"]

    console.rule("4 speed on this machine")
    rows = measure_speed(console)
    write_json(output / "speed.json", [dataclasses.asdict(row) for row in rows])

    console.rule("done")
    scores = json.loads((output / "evaluation" / f"{split.value}.json").read_text(encoding="utf-8"))
    per_class = ", ".join(f"{name} {100 * (score['iou'] or 0):.1f}" for name, score in scores["classes"].items())
    lines = [
        f"scores    held-out mean IoU {100 * scores['mean_iou']:.1f} % ({per_class}), "
        f"overall accuracy {100 * scores['overall_accuracy']:.1f} %",
        *(f"picture   {path}" for path in pictures),
        f"report    {run / PAGE}",
        f"map       {output / 'map' / f'{scene.stem}_labels.tif'}",
        *(
            f"speed     {row.case}: fused {row.median_ms:.1f} ms, {row.speedup:.2f} x the reference"
            for row in rows[1::2]
        ),
        f"time      {time.perf_counter() - started:.0f} s",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def is_up_to_date(run: Path, settings: TrainSettings) -> bool:
    """Whether ``run`` holds a finished training with exactly these settings."""
    if not all((run / name).is_file() for name in (SETTINGS, REPORT, BEST_MODEL)):
        return False
    stored: Any = yaml.safe_load((run / SETTINGS).read_text(encoding="utf-8"))
    return bool(stored == settings.model_dump(mode="json"))


def draw_tiles(checkpoint: Path, data: DataSplits, split: Split, path: Path) -> Path:
    """Write held-out tiles beside their labels and the model's, those with the most classes first."""
    predictor = Predictor(checkpoint)
    mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (data.mean, data.std))
    items = sorted(getattr(data, split.value), key=lambda item: -len(item["label"].unique()))[:TILES_SHOWN]
    rows = []
    for item in items:
        image = item["image"].numpy() * std + mean
        parts = (stretch(rgb_bands(image)), item["label"].numpy().astype(np.uint8), predictor.predict(image))
        zoom = max(1, 320 // image.shape[-1])
        rows.append(tuple(part.repeat(zoom, axis=0).repeat(zoom, axis=1) for part in parts))
    with replacing(path) as temporary:
        side_by_side(rows, data.classes, data.palette).save(temporary)
    return path


def draw_curve(metrics: Path, path: Path) -> Path:
    """Write the loss and the validation mean IoU over the training steps."""
    with metrics.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    left = figure.add_subplot()
    right = left.twinx()
    lines = ((left, "loss", "training loss", "tab:blue"), (right, "mean_iou", "validation mean IoU", "tab:orange"))
    for axes, column, title, colour in lines:
        points = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
        axes.plot(*zip(*points, strict=True), color=colour, marker="." if column == "mean_iou" else None)
        axes.set_ylabel(title, color=colour)
    left.set_xlabel("step")
    right.set_ylim(0, 1)
    with replacing(path) as temporary:
        figure.savefig(temporary)
    return path


def measure_speed(console: Console) -> list[harness.Row]:
    """The head's forward pass, fused against the reference, timed in turns; both are checked against float64 first."""
    limits = harness.Limits(machine.copy_bandwidth("cpu"), machine.matrix_rate("cpu", torch.float32))
    cases = [
        dataclasses.replace(case, variants=[v for v in case.variants if v.name in ("reference eager", "fused")])
        for case in head_cases(Sizes())
        if case.name.endswith(" forward")
    ]
    rows = harness.run_cases(cases, "cpu", limits, 9, console)
    table = Table(title=f"{rows[0].setting}, median of 9")
    for heading in ("what", "how", "ms", "times the reference"):
        table.add_column(heading, justify="left" if heading in ("what", "how") else "right")
    for row in rows:
        table.add_row(row.case, row.variant, f"{row.median_ms:.1f}", f"{row.speedup:.2f}")
    console.print(table)
    return rows


if __name__ == "__main__":
    try:
        typer.run(demo)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
