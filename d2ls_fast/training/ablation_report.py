"""An ablation's result for people: a rich table, Markdown, JSON, and a picture with error bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from d2ls_fast.files import replacing, write_json
from d2ls_fast.training.ablate import Row
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.report import versions

_COLUMNS = ("model", "mIoU, last step", "against the first row", "mIoU, best step", "parameters", "s a run")


def table(rows: Sequence[Row]) -> Table:
    """One line a row: mean and standard deviation over the seeds, in percent."""
    shown = Table(title=f"held-out mean IoU over {len(rows[0].last)} seeds")
    for column in _COLUMNS:
        shown.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        shown.add_row(*_cells(row, rows[0]))
    return shown


def markdown(rows: Sequence[Row], settings: TrainSettings, command: str) -> str:
    """The same as a page, with each seed's score and how it was made."""
    length = f"{settings.steps} steps" if settings.steps else f"{settings.epochs} epochs"
    lines = [
        f"# Ablation of {settings.name}",
        "",
        f"`{command}`: {length} of {settings.batch_size * settings.accumulate} crops, seeds"
        f" {', '.join(map(str, rows[0].seeds))}.",
        "Held-out mean IoU in percent, mean ± standard deviation over the seeds. The last step is chosen by nothing;"
        " the best step is chosen on the very images it is scored on.",
        "",
        "| " + " | ".join((*_COLUMNS, "each seed, last step")) + " |",
        "|" + "---|" * (len(_COLUMNS) + 1),
    ]
    for row in rows:
        each = ", ".join(f"{100 * value:.1f}" for value in row.last)
        lines.append("| " + " | ".join((*_cells(row, rows[0]), each)) + " |")
    lines += ["", ", ".join(f"{name} {number}" for name, number in versions().items()), ""]
    return "\n".join(lines)


def to_json(rows: Sequence[Row], settings: TrainSettings, command: str) -> dict[str, Any]:
    """Plain JSON values: every seed's scores beside the summary."""
    described = settings.model_dump(mode="json", exclude={"output"})
    described["data"].pop("root")  # the file is to be shown to others, whose folders are elsewhere
    return {
        "command": command,
        "versions": versions(),
        "rows": [
            {
                "key": row.key,
                "model": row.label,
                "parameters": row.parameters,
                "seeds": row.seeds,
                "mean_iou_last": row.last,
                "mean_iou_best": row.best,
                "mean": row.mean,
                "standard_deviation": row.spread,
                "seconds": row.seconds,
            }
            for row in rows
        ],
        "settings": described,
    }


def save_picture(path: Path, rows: Sequence[Row], title: str) -> None:
    """Mean and standard deviation of every row as a point with error bars, each seed as a dot below it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.45 * len(rows)), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    places = range(len(rows))
    colours = ["#1b7837", *["#555555"] * (len(rows) - 1)]
    for place, row, colour in zip(places, rows, colours, strict=True):
        spread = 100 * (row.spread or 0.0)
        axes.errorbar(100 * row.mean, place, xerr=spread, fmt="D", color=colour, capsize=5, markersize=6)
        each = [100 * value for value in row.last]
        axes.plot(each, [place + 0.22] * len(each), "o", color=colour, markersize=3, alpha=0.6)
    axes.set_yticks(places, [row.label for row in rows])
    axes.invert_yaxis()
    axes.margins(y=0.12)
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.set_xlabel("held-out mean IoU at the last step, percent (mean ± sd, each seed)")
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary)


def write(folder: Path, rows: Sequence[Row], settings: TrainSettings, command: str) -> list[Path]:
    """Write ``ablation.json``, ``ablation.md`` and ``ablation.png`` into ``folder``; returns their paths."""
    paths = [folder / f"ablation.{suffix}" for suffix in ("json", "md", "png")]
    write_json(paths[0], to_json(rows, settings, command))
    with replacing(paths[1]) as temporary:
        temporary.write_text(markdown(rows, settings, command), encoding="utf-8")
    save_picture(paths[2], rows, f"{settings.name}: {len(rows[0].last)} seeds")
    return paths


def _cells(row: Row, first: Row) -> list[str]:
    difference = "" if row is first else f"{100 * (row.mean - first.mean):+.1f}"
    best = sum(row.best) / len(row.best)
    spread = "" if row.spread is None else f" ± {100 * row.spread:.1f}"
    return [
        row.label,
        f"{100 * row.mean:.1f}{spread}",
        difference,
        f"{100 * best:.1f}",
        f"{row.parameters / 1e6:.2f} M",
        f"{sum(row.seconds) / len(row.seconds):.0f}",
    ]
