"""The report that people read: one HTML page that holds its pictures and needs no network and no script."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from d2ls_fast.data.palettes import hex_code
from d2ls_fast.files import replacing
from d2ls_fast.training.figures import DARK, LIGHT, Curve, curve_figure, matrix_figure, png, row_shares
from d2ls_fast.training.gallery import UNLABELLED, WRONG, Gallery, Tile
from d2ls_fast.training.metrics import Scores

_TERM = "loss_"


@dataclass(frozen=True)
class Page:
    """What a page says. Text from outside (names, settings, paths) is escaped.

    Attributes:
        title, subtitle: heading and the line below it.
        facts: what ran, by label.
        classes, palette: names and RGB colours (0..255) in index order.
        scores: of the split that is reported on, or none.
        curves: what was logged over the steps, by the names of ``metrics.csv``.
        gallery: worst and best tiles, or none.
        settings: shown as YAML.
    """

    title: str
    subtitle: str
    facts: Mapping[str, str]
    classes: Sequence[str]
    palette: Sequence[Sequence[int]]
    scores: Scores | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)
    gallery: Gallery | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the page to ``path`` (.html), whole or not at all."""
        page = render(self)
        with replacing(path) as temporary:
            temporary.write_text(page, encoding="utf-8")


def render(page: Page) -> str:
    """The HTML of ``page``."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = percent
    template = resources.files("d2ls_fast.training").joinpath("page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        title=page.title,
        subtitle=page.subtitle,
        facts=page.facts,
        rows=[] if page.scores is None else _class_rows(page, page.scores),
        scores=page.scores,
        matrix=None if page.scores is None else _matrix(page, page.scores),
        figures=_curves(page.curves),
        tiles=_tiles(page),
        legend=[(name, hex_code(colour)) for name, colour in zip(page.classes, page.palette, strict=True)]
        + [("wrong", hex_code(WRONG)), ("not labelled", hex_code(UNLABELLED))],
        settings=yaml.safe_dump(dict(page.settings), sort_keys=False, allow_unicode=True) if page.settings else "",
    )


def percent(value: float) -> str:
    """``0.1234`` as ``12.3``; a dash where there is no value."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _class_rows(page: Page, scores: Scores) -> list[dict[str, Any]]:
    total = sum(map(sum, scores.matrix))
    return [
        {
            "name": name,
            "colour": hex_code(page.palette[index]),
            "excluded": index in scores.excluded,
            "iou": scores.iou[index],
            "bar": 0.0 if math.isnan(scores.iou[index]) else 100 * scores.iou[index],
            "values": [column[index] for column in (scores.f1, scores.precision, scores.recall)],
            "share": sum(scores.matrix[index]) / total if total else math.nan,
        }
        for index, name in enumerate(page.classes)
    ]


def _matrix(page: Page, scores: Scores) -> dict[str, Any]:
    shares = row_shares(scores)
    others = np.nan_to_num(shares * (1 - np.eye(len(shares))))
    truth, predicted = divmod(int(others.argmax()), len(others))
    confusion = ""
    if others.max() > 0:
        confusion = (
            f"The largest confusion: {percent(float(others.max()))} % of {page.classes[truth]} "
            f"was taken for {page.classes[predicted]}."
        )
    return {
        "figure": _both(partial(matrix_figure, scores, page.classes)),
        "confusion": confusion,
        "width": 6 + 2.4 * len(shares),  # rem at which the numbers can be read
        "rows": list(zip(page.classes, shares.tolist(), scores.matrix, strict=True)),
    }


def _curves(curves: Mapping[str, Curve]) -> list[dict[str, str]]:
    """Pictures of those of the loss, the scores and the learning rate that were logged."""
    terms = {name.removeprefix(_TERM).replace("_", " "): c for name, c in curves.items() if name.startswith(_TERM)}
    groups: list[tuple[str, dict[str, Curve], dict[str, Any]]] = [
        ("training loss", ({"total": curves["loss"]} | terms) if "loss" in curves else {}, {"smooth": True}),
        (
            "validation score",
            {
                label: curves[name]
                for name, label in (("mean_iou", "mean IoU"), ("mean_f1", "mean F1"), ("overall_accuracy", "OA"))
                if name in curves
            },
            {"mark_best": True},
        ),
        ("learning rate", {"learning rate": curves["lr"]} if "lr" in curves else {}, {}),
    ]
    return [
        {"alt": _describe(label, series)} | _both(partial(curve_figure, series, label, **options))
        for label, series, options in groups
        if series
    ]


def _describe(label: str, series: Mapping[str, Curve]) -> str:
    name, points = next(iter(series.items()))
    (first, start), (last, end) = points[0], points[-1]
    return f"{label} ({name}): {start:.4g} at step {first}, {end:.4g} at step {last}"


def _tiles(page: Page) -> list[tuple[str, list[dict[str, Any]]]]:
    if page.gallery is None:
        return []
    groups = (("Worst tiles", page.gallery.worst), ("Best tiles", page.gallery.best))
    return [(heading, [_tile(tile, page.palette) for tile in tiles]) for heading, tiles in groups if tiles]


def _tile(tile: Tile, palette: Sequence[Sequence[int]]) -> dict[str, Any]:
    pictures = [
        {"heading": heading, "source": _jpeg(picture), "alt": f"{heading} of {tile.name}"}
        for heading, picture in tile.pictures(palette).items()
    ]
    height, width = tile.rgb.shape[:2]
    return {"tile": tile, "pictures": pictures, "width": width, "height": height}


def _both(draw: Callable[..., Figure]) -> dict[str, str]:
    """A figure, drawn with ``theme=...`` for light and for dark pages."""
    return {
        name: "data:image/png;base64," + base64.b64encode(png(draw(theme=theme))).decode()
        for name, theme in (("light", LIGHT), ("dark", DARK))
    }


def _jpeg(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=85, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
