"""The pages that a training run and an evaluation leave."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from d2ls_fast.data import DataSplits
from d2ls_fast.models.base import SegmentationModel
from d2ls_fast.models.checkpoint import load_checkpoint
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.evaluate import excluded_indices, predictions
from d2ls_fast.training.figures import read_curves
from d2ls_fast.training.gallery import Gallery
from d2ls_fast.training.metrics import Scores
from d2ls_fast.training.page import Page
from d2ls_fast.training.report import versions


def new_gallery(settings: TrainSettings, data: DataSplits) -> Gallery | None:
    """A gallery for items of ``data``, or none where ``settings.gallery`` is 0."""
    if settings.gallery == 0:
        return None
    return Gallery(len(data.classes), excluded_indices(settings), data.mean, data.std, settings.gallery)


def write_run_page(
    path: Path,
    report: Mapping[str, Any],
    settings: TrainSettings,
    data: DataSplits,
    scores: Scores | None,
    checkpoint: Path,
    metrics: Path,
    console: Console,
) -> None:
    """Write the page of a finished training run.

    The gallery shows what the model in ``checkpoint`` makes of the validation images: one more pass over them, in this
    process alone.

    Args:
        path: of the page.
        report: what ``report.json`` holds.
        scores: of the best model, or none without validation images.
        checkpoint: the best model.
        metrics: the CSV file of the run.
    """
    gallery = new_gallery(settings, data) if scores is not None else None
    if gallery is not None:
        model, _ = load_checkpoint(checkpoint, report["device"])
        show_tiles(gallery, model, settings, data, report["device"], console)
    items = report["items"]
    facts = {
        "protocol": "; ".join(report["protocol"]),
        "processes": str(report["processes"]),
        "images": f"{items['train']} training crops an epoch, {items['val']} validation, {items['test']} test items",
        "steps": f"{report['steps']} of {settings.batch_size * settings.accumulate * report['processes']} images",
        "best step": str(report["best_step"]),
        "parameters": f"{report['parameters']:,}",
        "training time": f"{report['seconds_in_this_session']:.0f} s for {report['steps_in_this_session']} steps, "
        f"validation included; {report['images_per_second']:.1f} images/s while training",
        **surroundings(settings, report["device"]),
    }
    Page(
        title=settings.name,
        subtitle=f"Training run. Scores of the best model ({checkpoint.name}) on the validation images."
        if scores is not None
        else "Training run without validation images.",
        facts=facts,
        classes=data.classes,
        palette=data.palette,
        scores=scores,
        curves=read_curves(metrics),
        gallery=gallery,
        settings=report["settings"],
    ).write(path)


def write_evaluation_page(
    path: Path,
    result: Mapping[str, Any],
    settings: TrainSettings,
    data: DataSplits,
    scores: Scores,
    gallery: Gallery | None,
    device: str,
) -> None:
    """Write the page of an evaluation; ``result`` is what its JSON file holds."""
    Page(
        title=f"{settings.name}: {path.stem}",
        subtitle=f"Scores of {result['checkpoint']} on the {result['items']} items of the split {result['split']!r}.",
        facts={
            "checkpoint": result["checkpoint"],
            "recipe": result["recipe"],
            "protocol": "; ".join(result["protocol"]),
            "items": str(result["items"]),
            **surroundings(settings, device),
        },
        classes=data.classes,
        palette=data.palette,
        scores=scores,
        gallery=gallery,
        settings=settings.model_dump(mode="json"),
    ).write(path)


def show_tiles(
    gallery: Gallery, model: SegmentationModel, settings: TrainSettings, data: DataSplits, device: str, console: Console
) -> None:
    """Fill ``gallery`` with the validation items."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        for item, labels in bar.track(
            predictions(model, data.val, device, settings.precision, settings.workers),
            total=len(data.val),
            description="gallery",
        ):
            gallery.add(item["image"][0], item["label"][0], labels[0].cpu(), item["name"][0])


def surroundings(settings: TrainSettings, device: str) -> dict[str, str]:
    """Device, precision, versions and date."""
    where = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    threads = "" if device == "cuda" else f", {torch.get_num_threads()} threads"
    return {
        "device": f"{where}{threads}, precision {settings.precision}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "finished": datetime.datetime.now().astimezone().isoformat(" ", "minutes"),
    }
