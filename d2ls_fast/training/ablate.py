"""Ablations: the same recipe with one part of D2LS taken away or changed at a time, over several seeds."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from d2ls_fast.config import read_yaml, validate
from d2ls_fast.errors import UserError
from d2ls_fast.files import writable_folder
from d2ls_fast.models.backbones import nearest
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.fit import REPORT, SETTINGS, fit
from d2ls_fast.training.resume import LAST_STATE, PREVIOUS_STATE

ROWS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "full": ("full model", {}),
    "stages-1": ("single stage", {"model": {"stages": 1}}),
    "stages-3": ("3 stages", {"model": {"stages": 3}}),
    "stages-5": ("5 stages", {"model": {"stages": 5}}),
    "one-way": ("no alternating queries", {"model": {"alternating": False}}),
    "no-contrast": ("no contrastive term", {"model": {"contrastive": False}, "loss": {"contrastive_weight": 0.0}}),
    "static": ("static dictionary", {"model": {"dynamic": False}}),
    "prototype": ("static prototypes (PANet)", {"model": {"name": "prototype"}}),
}
"""What each row is called and what it changes in the recipe."""

_BESIDE_THE_POINT = {"name", "output", "workers", "log_every"}  # settings that leave a run's results as they are


@dataclass(frozen=True)
class Run:
    """One training run of an ablation, to do or done."""

    row: str
    seed: int
    settings: TrainSettings


@dataclass
class Row:
    """What the runs of one row gave: held-out mean IoU per seed, at the last step and at the best one.

    The best step is chosen on the very images it is scored on; the last step is chosen by nothing.
    """

    key: str
    label: str
    seeds: list[int] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    parameters: int = 0

    @property
    def mean(self) -> float:
        return statistics.fmean(self.last)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None for a single one."""
        return statistics.stdev(self.last) if len(self.last) > 1 else None


def plan(settings: TrainSettings, keys: Sequence[str], seeds: int) -> tuple[list[Row], list[Run]]:
    """The rows and their runs, in the order in which they are done: every row once, then the next seed.

    Rows that come to the same settings (a recipe of 3 stages has "3 stages" as its full model) become one.

    Raises:
        UserError: an unknown row, or a recipe of another model than D2LS.
    """
    for key in keys:
        if key not in ROWS:
            raise UserError(f"--only {key}: there is no such row; {nearest(key, tuple(ROWS))}")
    if settings.model.name != "d2ls":
        raise UserError(f"model.name={settings.model.name}: an ablation takes a recipe of d2ls apart; leave it out")
    rows: dict[str, Row] = {}
    changed: dict[str, dict[str, Any]] = {}
    for key, (label, changes) in ROWS.items():
        if keys and key not in keys:
            continue
        tree = settings.model_dump(mode="json")
        for group, values in changes.items():
            tree[group] |= values
        twin = next((other for other, earlier in changed.items() if earlier == tree), None)
        if twin is not None:
            rows[twin].label += f" = {label}"
            continue
        rows[key], changed[key] = Row(key, label), tree
    runs = []
    for number in range(seeds):
        for key, tree in changed.items():
            seed = settings.seed + number
            folder = folder_of(settings) / key / f"seed-{seed}"
            own = {"seed": seed, "output": str(folder), "name": f"{settings.name} {key} {seed}"}
            runs.append(Run(key, seed, validate(TrainSettings, tree | own, key)))
    return list(rows.values()), runs


def ablate(
    settings: TrainSettings, seeds: int = 3, keys: Sequence[str] = (), console: Console | None = None
) -> list[Row]:
    """Do every run that is not done yet, each in a folder of its own, and gather the scores.

    A run is what :func:`~d2ls_fast.training.fit.fit` does, in ``<output>/ablation/<row>/seed-<n>``; a finished one is
    read, an interrupted one continued.

    Args:
        settings: the recipe of the full model; its seed is the first of ``seeds``.
        keys: of :data:`ROWS`; all by default.
        console: for one line per run and the progress over all of them.

    Raises:
        UserError: as :func:`plan` and ``fit``, a folder that holds another run, or no validation images.
    """
    console = console or Console()
    rows, runs = plan(settings, keys, seeds)
    for run in runs:
        _check_same(run)
    writable_folder(settings.output, "output=")
    by_key = {row.key: row for row in rows}
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(runs))
        for number, run in enumerate(runs, 1):
            row = by_key[run.row]
            bar.update(task, description=f"{row.label}, seed {run.seed}")
            done = (run.settings.output / REPORT).is_file()
            report = json.loads((run.settings.output / REPORT).read_text()) if done else _fit(run.settings)
            _gather(row, run, report)
            note = "  (done before)" if done else ""
            console.print(
                f"[{number}/{len(runs)}] {row.label}, seed {run.seed}: mIoU {100 * row.last[-1]:.1f}"
                f" (best {100 * row.best[-1]:.1f})  {row.seconds[-1]:.0f} s{note}",
                highlight=False,
                markup=False,
            )
            bar.advance(task)
    return rows


def _fit(settings: TrainSettings) -> dict[str, Any]:
    started = any((settings.output / name).exists() for name in (LAST_STATE, PREVIOUS_STATE))
    return fit(settings, resume=started, overwrite=not started, console=Console(file=io.StringIO()))


def _gather(row: Row, run: Run, report: dict[str, Any]) -> None:
    if report["last"] is None or report["last"]["mean_iou"] is None:
        raise UserError("data: an ablation compares scores on validation images; add data.val, or data.split with val")
    row.seeds.append(run.seed)
    row.last.append(report["last"]["mean_iou"])
    row.best.append(report["best"]["mean_iou"])
    row.seconds.append(report["seconds_in_this_session"])
    row.parameters = report["parameters"]


def _check_same(run: Run) -> None:
    """Refuse a folder whose run had other settings than the ones asked for."""
    path = run.settings.output / SETTINGS
    if not path.is_file():
        return
    earlier, wanted = _flat(read_yaml(path)), _flat(run.settings.model_dump(mode="json"))
    if wanted["loss.class_weights"] == "frequencies":  # the run wrote down what it counted
        wanted["loss.class_weights"] = earlier["loss.class_weights"]
    for key in sorted(wanted.keys() | earlier.keys()):
        if key.split(".")[0] not in _BESIDE_THE_POINT and wanted.get(key) != earlier.get(key):
            raise UserError(
                f"{path}: holds a run with {key}={earlier.get(key)}, the settings now say {wanted.get(key)};"
                " restore it, remove the folder, or choose another with output="
            )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def folder_of(settings: TrainSettings) -> Path:
    """Where an ablation of this recipe leaves its runs and its tables."""
    return settings.output / "ablation"
