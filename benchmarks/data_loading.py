"""How fast one worker makes training crops, and how much of a training step is spent waiting for them.

A worker is one process with one thread, as PyTorch's data loader makes them: rates are crop pixels, decoded, cut,
resampled and augmented. Steps are those of ``d2ls-fast train`` with the recipe's model, timed where the trainer asks
for a batch; the first two are left out.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from rich import box
from rich.progress import Progress
from rich.table import Table
from torch.utils.data import DataLoader

from d2ls_fast.data import DataSplits, Item, build_datasets
from d2ls_fast.files import replacing
from d2ls_fast.training.build import build_loader, build_module, build_trainer, run
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.sampling import TrainingStream

WARM_UP = 2


@dataclass(frozen=True)
class Rate:
    """Crops of one worker."""

    source: str
    """``files`` (nothing kept in memory; the system's file cache is warm) or ``memory`` (``data.cache_gigabytes``)."""
    crops: int
    megapixels_per_second: float
    median_ms: float
    """Of one crop, as the percentiles."""
    p20_ms: float
    p80_ms: float


@dataclass(frozen=True)
class Waiting:
    """Training steps with the given number of loader workers; 0 makes the crops between the steps."""

    workers: int
    steps: int
    step_ms: float
    """Median, waiting included."""
    waiting_ms: float
    """Median."""
    waiting_percent: float
    """Of the time of all steps together."""


class TimedLoader:
    """A loader that notes when a batch is asked for and when it is there."""

    def __init__(self, loader: DataLoader[Item]) -> None:
        self.loader = loader
        self.asked: list[float] = []
        self.given: list[float] = []

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Item]:
        batches = iter(self.loader)
        while True:
            self.asked.append(time.perf_counter())
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.given.append(time.perf_counter())
            yield batch


def measure_rates(settings: TrainSettings, crops: int, advance: Callable[[], None] = lambda: None) -> list[Rate]:
    """Time ``crops`` training crops of the recipe read from files, then again with their images in memory."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = []
        for source, gigabytes in (("files", 0.0), ("memory", settings.data.cache_gigabytes)):
            data = build_datasets(settings.data.model_copy(update={"cache_gigabytes": gigabytes}), settings.augment)
            stream = TrainingStream(data.train, crops, settings.seed, settings.batch_size * settings.accumulate)
            if source == "memory":
                for index in range(crops):
                    _ = stream[index]  # the same crops again are those whose images are in memory now
            rates.append(_rate(source, stream, advance))
        return rates
    finally:
        torch.set_num_threads(threads)


def _rate(source: str, stream: TrainingStream, advance: Callable[[], None]) -> Rate:
    seconds, pixels = [], 0
    for index in range(len(stream)):
        start = time.perf_counter()
        item = stream[index]
        seconds.append(time.perf_counter() - start)
        pixels += item["label"].numel()
        advance()
    ordered = [1e3 * value for value in sorted(seconds)]
    p20, p80 = (ordered[int(share * (len(ordered) - 1))] for share in (0.2, 0.8))
    return Rate(source, len(stream), pixels / sum(seconds) / 1e6, statistics.median(ordered), p20, p80)


def measure_waiting(settings: TrainSettings, data: DataSplits, steps: int, workers: int) -> Waiting:
    """Train for ``steps`` timed optimizer steps (and two before them) with the trainer of ``d2ls-fast train``."""
    total = steps + WARM_UP
    chosen = settings.model_copy(update={"steps": total, "epochs": None, "workers": workers})
    loader = TimedLoader(build_loader(chosen, data, total, 0))
    module = build_module(chosen, data, total, fresh=True, device=chosen.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(chosen, Path(folder), "metrics.csv", chosen.device, total, None, [])
        run(trainer, module, cast("DataLoader[Item]", loader), None)
        loader.asked.append(time.perf_counter())
    first = WARM_UP * chosen.accumulate
    waits = [given - asked for asked, given in zip(loader.asked, loader.given, strict=False)]
    spans = [after - before for before, after in zip(loader.asked, loader.asked[1:], strict=False)][: len(waits)]
    per_step = [
        (sum(spans[start : start + chosen.accumulate]), sum(waits[start : start + chosen.accumulate]))
        for start in range(first, len(waits), chosen.accumulate)
    ]
    spent, waited = zip(*per_step, strict=True)
    return Waiting(
        workers,
        len(per_step),
        1e3 * statistics.median(spent),
        1e3 * statistics.median(waited),
        100 * sum(waited) / sum(spent),
    )


def measure(settings: TrainSettings, steps: int, progress: Progress) -> tuple[list[Rate], list[Waiting]]:
    """Rates over as many crops as the steps take, then the steps without workers and with the recipe's."""
    crops = steps * settings.batch_size * settings.accumulate
    task = progress.add_task("crops", total=2 * crops)
    rates = measure_rates(settings, crops, lambda: progress.advance(task))
    counts = sorted({0, settings.workers})
    task = progress.add_task(f"{steps} training steps, each number of workers", total=len(counts))
    waiting = []
    for workers in counts:
        data = build_datasets(settings.data, settings.augment)
        waiting.append(measure_waiting(settings, data, steps, workers))
        progress.advance(task)
    return rates, waiting


def tables(rates: list[Rate], waiting: list[Waiting]) -> list[Table]:
    """Both measurements, for a terminal."""
    shown = []
    for title, rows in _cells(rates, waiting).items():
        table = Table(*rows[0], title=title, title_justify="left", title_style="bold", box=box.SIMPLE)
        for row in rows[1:]:
            table.add_row(*row)
        shown.append(table)
    return shown


def write(facts: dict[str, object], recipe: str, rates: list[Rate], waiting: list[Waiting], stem: Path) -> list[Path]:
    """Write ``stem.json`` and ``stem.md``; returns their paths."""
    lines = [f"{key}: {value}  " for key, value in (facts | {"recipe": recipe}).items()]
    for title, rows in _cells(rates, waiting).items():
        lines += ["", f"**{title}**", "", "| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
        lines += ["| " + " | ".join(row) + " |" for row in rows[1:]]
    content = {
        "machine": facts,
        "recipe": recipe,
        "rates": [asdict(rate) for rate in rates],
        "waiting": [asdict(row) for row in waiting],
    }
    texts = {".json": json.dumps(content, indent=1) + "\n", ".md": "\n".join(lines) + "\n"}
    for suffix, text in texts.items():
        with replacing(stem.with_suffix(suffix)) as path:
            path.write_text(text, encoding="utf-8")
    return [stem.with_suffix(suffix) for suffix in texts]


def _cells(rates: list[Rate], waiting: list[Waiting]) -> dict[str, list[list[str]]]:
    """Each table's title, headings and rows."""
    titles: dict[str, Sequence[Any]] = {
        "crops of one worker (one thread)": rates,
        "waiting for data in training": waiting,
    }
    cells = {}
    for title, rows in titles.items():
        cells[title] = [[field.name.replace("_", " ") for field in fields(rows[0])]]
        for row in rows:
            cells[title].append([f"{v:.2f}" if isinstance(v, float) else str(v) for v in asdict(row).values()])
    return cells
