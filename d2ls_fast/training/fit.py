"""One training run, from settings to report."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything
from rich.console import Console

from d2ls_fast.data import DataSplits, build_datasets
from d2ls_fast.errors import UserError
from d2ls_fast.files import writable_folder, write_json, write_yaml
from d2ls_fast.training.build import build_card, build_loader, build_module, build_trainer, run
from d2ls_fast.training.class_weights import with_class_weights
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.evaluate import excluded_indices, pick_device
from d2ls_fast.training.metrics import Scores
from d2ls_fast.training.outputs import BEST_MODEL, LAST_MODEL, ValidateAndSave
from d2ls_fast.training.parallel import find_processes
from d2ls_fast.training.progress import TrainingProgress
from d2ls_fast.training.protocol import describe
from d2ls_fast.training.report import score_table, scores_to_json, versions
from d2ls_fast.training.reports import write_run_page
from d2ls_fast.training.resume import LAST_STATE, PREVIOUS_STATE, check_state, find_state

SETTINGS, METRICS, REPORT, PAGE = "settings.yaml", "metrics.csv", "report.json", "report.html"


def fit(
    settings: TrainSettings,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    previous: bool = False,
) -> dict[str, Any]:
    """Train by ``settings`` and write into ``settings.output``.

    The folder receives ``settings.yaml``, ``metrics.csv`` (and TensorBoard events where it is installed),
    ``last.ckpt``, ``previous.ckpt``, ``last.safetensors``, ``best.safetensors``, ``report.html`` and, last of all,
    ``report.json``; the scores of the best model are printed. Under torchrun every process calls this; the first one
    writes and prints.

    Args:
        resume: continue from ``last.ckpt``.
        overwrite: replace the run that the folder holds.
        console: where progress and scores are printed; standard output by default.
        previous: continue from ``previous.ckpt``, the state before the last one.

    Returns:
        What ``report.json`` holds.

    Raises:
        UserError: a bad setting, bad data, a folder that cannot be written or holds another run, a loss that diverged.
        KeyboardInterrupt: interrupted; ``last.ckpt`` holds the state that was saved last.
    """
    device = pick_device(settings)
    processes = find_processes(settings, device)
    first = processes.rank == 0
    console = (console or Console()) if first else Console(quiet=True)
    exclude = excluded_indices(settings)
    resume = resume or previous
    folder = _prepare_folder(settings.output, resume, overwrite) if first else settings.output
    seed_everything(settings.seed, workers=True, verbose=False)
    data = build_datasets(settings.data, settings.augment)
    settings = with_class_weights(settings, data.train.pairs, console)
    images_per_step = settings.batch_size * settings.accumulate * processes.world
    steps_per_epoch = max(1, math.ceil(len(data.train) / images_per_step))
    total_steps = settings.steps or steps_per_epoch * (settings.epochs or 1)
    state = find_state(folder, previous) if resume else None
    first_step = 0 if state is None else check_state(state, settings, total_steps, (folder / REPORT).exists())

    module = build_module(settings, data, total_steps, not resume, steps_per_epoch, device, processes)
    validation = ValidateAndSave(
        folder,
        build_card(module.model, data, settings),
        data.val if _count(data.val) else None,
        settings.evaluate_every or steps_per_epoch,
        total_steps,
        exclude,
        settings.checkpoint_every,
        keep_previous=not previous,
    )
    progress = TrainingProgress(total_steps, settings.batch_size * processes.world, validation, console)
    trainer = build_trainer(
        settings,
        folder,
        METRICS,
        device,
        total_steps,
        first_step if resume else None,
        [validation, progress],
        processes,
    )
    loader = build_loader(settings, data, total_steps, first_step, processes)
    if first:
        (folder / REPORT).unlink(missing_ok=True)
        write_yaml(folder / SETTINGS, settings.model_dump(mode="json"))
    if state is not None:
        console.print(f"continuing at step {first_step} from {state}", highlight=False)
    console.print(
        f"{settings.name}: {len(data.train)} training items, {_count(data.val)} validation images, {total_steps} steps"
        f" of {images_per_step} on {processes.world} x {device}, output in {folder}",
        highlight=False,
    )
    for line in describe(settings, data):
        console.print(line, highlight=False, soft_wrap=True)
    started = time.perf_counter()
    run(trainer, module, loader, state)

    report = {
        "name": settings.name,
        "protocol": describe(settings, data),
        "steps": total_steps,
        "steps_in_this_session": total_steps - first_step,
        "seconds_in_this_session": round(time.perf_counter() - started, 1),
        "images_per_second": round(progress.images_per_second, 2),
        "device": device,
        "processes": processes.world,
        "parameters": sum(parameter.numel() for parameter in module.model.parameters()),
        "items": {"train": len(data.train), "val": _count(data.val), "test": _count(data.test)},
        "best_step": validation.best_step,
        "best": _scores(validation.best, data),
        "last": _scores(validation.scores, data),
        "versions": versions(),
        "settings": settings.model_dump(mode="json"),
    }
    if first:
        write_run_page(
            folder / PAGE, report, settings, data, validation.best, folder / BEST_MODEL, folder / METRICS, console
        )
        write_json(folder / REPORT, report)
    if validation.best is not None:
        console.print(score_table(validation.best, data.classes, f"{settings.name}: step {validation.best_step}"))
    console.print(f"best model: {folder / BEST_MODEL}, report: {folder / PAGE}", highlight=False, soft_wrap=True)
    return report


def _prepare_folder(folder: Path, resume: bool, overwrite: bool) -> Path:
    writable_folder(folder, "output=")
    for leftover in folder.glob(".*.part*"):  # of a run that was killed while writing
        leftover.unlink()
    names = (LAST_STATE, PREVIOUS_STATE, LAST_MODEL, BEST_MODEL, REPORT, PAGE)
    earlier = [folder / name for name in names if (folder / name).exists()]
    if earlier and not resume:
        if not overwrite:
            raise UserError(
                f"{earlier[0]}: this folder holds a run; continue it with --resume, replace it with --overwrite,"
                " or choose another folder with output="
            )
        for path in earlier:
            path.unlink()
    return folder


def _count(dataset: Any) -> int:
    return 0 if dataset is None else len(dataset)


def _scores(scores: Scores | None, data: DataSplits) -> dict[str, Any] | None:
    return None if scores is None else scores_to_json(scores, data.classes)
