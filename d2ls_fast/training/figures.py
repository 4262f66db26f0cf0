"""Figures of a run: the confusion matrix, and what was logged over the steps. Each in ink for light or dark pages."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from d2ls_fast.training.metrics import Scores

Curve = list[tuple[int, float]]
"""(optimizer step, value) pairs."""

POINTS = 2000
"""Points of a curve that are drawn at most."""


@dataclass(frozen=True)
class Theme:
    """Colours of a figure."""

    ground: str
    ink: str
    faint: str
    lines: tuple[str, ...]


LIGHT = Theme("#ffffff", "#1c2024", "#c9ced6", ("#1f6feb", "#d1570c", "#1a7f5a", "#8250df", "#9a6700", "#c11574"))
DARK = Theme("#171b21", "#e6e9ee", "#434b57", ("#6cb0ff", "#ff9d5c", "#4fd1a5", "#c4a1ff", "#e3b341", "#ff8bc8"))


def matrix_figure(scores: Scores, classes: Sequence[str], title: str = "", theme: Theme = LIGHT) -> Figure:
    """The confusion matrix: rows are the true classes, columns the predicted ones, cells percent of the true class."""
    shares = 100 * np.nan_to_num(row_shares(scores))
    size = min(20.0, max(4.5, 0.75 * len(classes) + 2.5))
    figure = Figure(figsize=(size, size), dpi=120, layout="constrained", facecolor=theme.ground)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    # Class names are the user's: a $ in one is no formula.
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(classes)), classes, parse_math=False)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    axes.set_title(title, parse_math=False)
    if len(classes) <= 40:
        for (row, column), value in np.ndenumerate(shares):
            colour = "white" if value > 55 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=11)
    _dress(axes, theme)
    return figure


def row_shares(scores: Scores) -> np.ndarray:
    """The matrix with every row divided by its sum; NaN in the rows of classes that the truth does not hold."""
    matrix = np.array(scores.matrix, np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(matrix / matrix.sum(axis=1, keepdims=True))


def read_curves(metrics: Path) -> dict[str, Curve]:
    """The columns of ``metrics.csv`` that hold a value, by name."""
    curves: dict[str, Curve] = {}
    with metrics.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step = int(row.pop("step"))
            for name, value in row.items():
                if value:
                    curves.setdefault(name, []).append((step, float(value)))
    return curves


def curve_figure(
    curves: Mapping[str, Curve], label: str, theme: Theme = LIGHT, smooth: bool = False, mark_best: bool = False
) -> Figure:
    """Curves over the optimizer steps, the first one drawn strongest.

    Args:
        curves: by the names that the legend shows.
        label: of the vertical axis.
        smooth: draw running means over a fiftieth of the run, the first curve's raw values faintly behind.
        mark_best: mark the highest point of the first curve.
    """
    figure = Figure(figsize=(5.2, 3.4), dpi=150, layout="constrained", facecolor=theme.ground)
    axes = figure.add_subplot()
    for index, (name, points) in enumerate(curves.items()):
        colour, first = theme.lines[index % len(theme.lines)], index == 0
        steps, values = np.array(points).T
        if smooth:
            if first:
                axes.plot(*_thinned(steps, values), color=colour, linewidth=0.8, alpha=0.3)
            steps, values = _running_mean(steps, values)
        marker = "o" if len(steps) <= 30 else None
        axes.plot(
            *_thinned(steps, values),
            color=colour,
            label=name,
            linewidth=2.2 if first else 1.2,
            marker=marker,
            markersize=4 if first else 2.5,
            alpha=1.0 if first else 0.8,
        )
        if first and mark_best:
            best = int(np.argmax(values))
            text = f"{values[best]:.3f} at step {steps[best]:.0f}"
            left = steps[best] > (steps[0] + steps[-1]) / 2
            axes.annotate(
                text,
                (steps[best], values[best]),
                (-4 if left else 4, 7),
                textcoords="offset points",
                ha="right" if left else "left",
                color=colour,
                fontweight="bold",
            )
            axes.margins(y=0.18)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
    axes.grid(color=theme.faint, linewidth=0.5, alpha=0.6)
    if len(curves) > 1:
        axes.legend(frameon=False, labelcolor=theme.ink, fontsize=9)
    _dress(axes, theme)
    return figure


def png(figure: Figure) -> bytes:
    """``figure`` as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _dress(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor(theme.ground)
    axes.tick_params(colors=theme.ink)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set_color(theme.ink)
    for spine in axes.spines.values():
        spine.set_color(theme.faint)


def _running_mean(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    window = max(1, len(values) // 50)
    return steps[window - 1 :], np.convolve(values, np.full(window, 1 / window), mode="valid")


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    every = math.ceil(len(steps) / POINTS)
    return steps[::every], values[::every]
