"""Results on paper: a JSON file with machine and versions, a Markdown table, and a picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from d2ls_fast.benchmarks.harness import Report, Row
from d2ls_fast.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of the fused variant: percent of the copy bandwidth and of the library's matrix rate, both measured in the same run.
_MEASURES = ("variant", "median ms", "p20-p80", "ratio", "error", "extra MB", "% copy", "% matrix")


def _further(rows: list[Row]) -> list[str]:
    """The names of the columns that only some cases have."""
    return list(dict.fromkeys(name for row in rows for name in row.facts))


def _cells(row: Row, further: list[str]) -> list[str]:
    """The columns of one line after its case and setting."""
    return [
        row.variant,
        f"{row.median_ms:.2f}",
        f"{row.p20_ms:.2f}-{row.p80_ms:.2f}",
        f"{row.speedup:.2f}x",
        "-" if row.error is None else f"{row.error:.1e}",
        "-" if row.peak_extra_mb is None else f"{row.peak_extra_mb:.1f}",
        "-" if row.copy_bandwidth_percent is None else f"{row.copy_bandwidth_percent:.0f}",
        "-" if row.matrix_rate_percent is None else f"{row.matrix_rate_percent:.0f}",
        *(row.facts.get(name, "-") for name in further),
    ]


def _by_case(report: Report) -> dict[str, list[Row]]:
    cases: dict[str, list[Row]] = {}
    for row in report.rows:
        cases.setdefault(f"{row.case}, {row.setting}", []).append(row)
    return cases


def tables(report: Report) -> list[Table]:
    """One table a case, for a terminal."""
    shown = []
    for title, rows in _by_case(report).items():
        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE, padding=(0, 1, 0, 0))
        further = _further(rows)
        for column in (*_MEASURES, *further):
            table.add_column(column, justify="left" if column == "variant" else "right", overflow="fold")
        for row in rows:
            table.add_row(*_cells(row, further))
        shown.append(table)
    return shown


def markdown(report: Report) -> str:
    lines = [f"{key}: {value}  " for key, value in report.machine.items()]
    for title, rows in _by_case(report).items():
        further = _further(rows)
        columns = (*_MEASURES, *further)
        lines += ["", f"**{title}**", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(_cells(row, further)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write(report: Report, stem: Path) -> list[Path]:
    """Write ``stem.json``, ``stem.md`` and ``stem.png``; returns their paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": report.machine, "rows": [dataclasses.asdict(row) for row in report.rows]}
    paths = [stem.with_suffix(suffix) for suffix in (".json", ".md", ".png")]
    with replacing(paths[0]) as path:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with replacing(paths[1]) as path:
        path.write_text(markdown(report), encoding="utf-8")
    with replacing(paths[2]) as path:
        plot(report, path)
    return paths


def plot(report: Report, path: Path) -> None:
    """The speed-ups, one panel a case: bars, or times as lines over what was swept where it has several settings."""
    from matplotlib.figure import Figure

    cases: dict[str, list[Row]] = {}
    for row in report.rows:
        cases.setdefault(row.case, []).append(row)
    swept = {case: len({row.setting for row in rows}) > 1 for case, rows in cases.items()}
    heights = [8 if swept[case] else len(rows) for case, rows in cases.items()]
    figure = Figure(figsize=(9, 0.45 * sum(heights) + 0.9 * len(cases)), layout="constrained")
    axes = figure.subplots(len(cases), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axis, (case, rows) in zip(axes, cases.items(), strict=True):
        (_lines if swept[case] else _bars)(axis, rows)
        axis.set_title(case if swept[case] else f"{case}, {rows[0].setting}", fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    if not swept[report.rows[-1].case]:
        axes[-1].set_xlabel(f"speed-up against {report.rows[0].variant} (higher is faster)")
    figure.savefig(path, dpi=110, format="png")


def _bars(axis: Axes, rows: list[Row]) -> None:
    colours = ["#1b7837" if row.variant.startswith("fused") else "#9e9e9e" for row in rows]
    bars = axis.barh([row.variant for row in rows], [row.speedup for row in rows], color=colours)
    axis.bar_label(bars, [f" {row.speedup:.2f}x  {row.median_ms:.2f} ms" for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.25)


def _lines(axis: Axes, rows: list[Row]) -> None:
    """Median times over the settings, labelled by the parts of the setting that differ."""
    settings = list(dict.fromkeys(row.setting for row in rows))
    parts = [setting.split() for setting in settings]
    differ = [i for i in range(len(parts[0])) if len({part[i] for part in parts}) > 1]
    labels = [" ".join(part[i] for i in differ) for part in parts]
    for variant in dict.fromkeys(row.variant for row in rows):
        at = {row.setting: row.median_ms for row in rows if row.variant == variant}
        fused = variant.startswith("fused")
        shown = [(label, at[setting]) for label, setting in zip(labels, settings, strict=True) if setting in at]
        axis.plot(*zip(*shown, strict=True), marker="o", markersize=4, linewidth=2 if fused else 1, label=variant)
    axis.set_yscale("log")
    axis.set_ylabel("ms")
    axis.legend(fontsize=7, frameon=False)
