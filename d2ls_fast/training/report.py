"""Scores for people: rich tables, JSON, and a picture of the confusion matrix."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from d2ls_fast.files import replacing
from d2ls_fast.training.figures import matrix_figure, row_shares
from d2ls_fast.training.metrics import Scores

_PER_CLASS = ("iou", "f1", "precision", "recall")


def score_table(scores: Scores, classes: Sequence[str], title: str) -> Table:
    """IoU, F1, precision and recall in percent, one row per class, with the means and the overall accuracy below."""
    table = Table(title=title)
    table.add_column("class")
    for heading in ("IoU", "F1", "precision", "recall"):
        table.add_column(heading, justify="right")
    table.add_column("share", justify="right")
    total = sum(map(sum, scores.matrix))
    for index, name in enumerate(classes):
        share = sum(scores.matrix[index]) / total if total else math.nan
        mark = " (not in means)" if index in scores.excluded else ""
        values = [getattr(scores, column)[index] for column in _PER_CLASS]
        table.add_row(name + mark, *map(_percent, values), _percent(share))
    table.add_section()
    table.add_row("mean", _percent(scores.mean_iou), _percent(scores.mean_f1), "", "", "")
    table.add_row("overall accuracy", _percent(scores.overall_accuracy), "", "", "", "")
    return table


def matrix_table(scores: Scores, classes: Sequence[str]) -> Table:
    """The confusion matrix in percent of the true class: rows are truth, columns predictions."""
    table = Table(title="confusion matrix, percent of each true class")
    table.add_column("truth \\ prediction")
    for name in classes:
        table.add_column(name, justify="right")
    for name, row in zip(classes, row_shares(scores).tolist(), strict=True):
        table.add_row(name, *map(_percent, row))
    return table


def scores_to_json(scores: Scores, classes: Sequence[str]) -> dict[str, Any]:
    """Plain JSON values; a score of a class that was never seen is ``null``."""
    return {
        "mean_iou": _or_null(scores.mean_iou),
        "mean_f1": _or_null(scores.mean_f1),
        "overall_accuracy": _or_null(scores.overall_accuracy),
        "excluded_from_means": [classes[index] for index in scores.excluded],
        "classes": {
            name: {column: _or_null(getattr(scores, column)[index]) for column in _PER_CLASS}
            for index, name in enumerate(classes)
        },
        "matrix": scores.matrix,
    }


def save_matrix_picture(path: Path, scores: Scores, classes: Sequence[str], title: str) -> None:
    """Write the confusion matrix (percent of each true class) as a PNG picture."""
    with replacing(path) as temporary:
        matrix_figure(scores, classes, title).savefig(temporary)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    packages = {name: version(name) for name in ("d2ls_fast", "torch", "timm", "lightning")}
    return {"python": platform.python_version(), **packages}
