"""The map of one image file: labels, colour overlay and confidence, all or nothing."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import RasterioError

from d2ls_fast.data.pictures import overlay, stretch
from d2ls_fast.files import replacing
from d2ls_fast.inference.mosaic import NODATA, LabelRows
from d2ls_fast.inference.predictor import Predictor, Progress
from d2ls_fast.inference.render import with_legend
from d2ls_fast.inference.sources import SceneSource, centres, open_scene
from d2ls_fast.inference.writers import GeoTiffWriter, PngWriter, RasterWriter
from d2ls_fast.models.checkpoint import ModelCard

OVERLAY_SIDE = 2048


@dataclass(frozen=True)
class SceneMap:
    """What came of one scene."""

    scene: Path
    files: list[Path]
    height: int
    width: int
    seconds: float
    shares: list[float]
    """Each class's share of the pixels with data, 0..1."""
    overlay_factor: int
    """Pixels of the scene per pixel of the overlay, along one side."""


def map_scene(
    predictor: Predictor,
    scene: Path,
    output: Path,
    *,
    confidence: bool = False,
    with_overlay: bool = True,
    nodata: float | None = None,
    progress: Progress | None = None,
) -> SceneMap:
    """Label the image file ``scene`` and write into the folder ``output``, each name beginning with the scene's stem:

    - ``_labels.tif`` (for GeoTIFF, JPEG 2000 and whatever has coordinates): placed as the scene, tiled, deflated, with
      a colour table, 255 where the scene has no data, and the classes' names as metadata ``class_<value>``;
      ``_labels.png`` (palette PNG, 255 where no data) for plain pictures;
    - ``_overlay.png``: the scene tinted with the classes' colours and a legend, at most 2048 pixels a side;
    - ``_confidence.tif`` (float32, the probability of the label, NaN where no data) or ``_confidence.png`` (0..255).

    All are written under temporary names and renamed when the whole scene is done.

    Raises:
        UserError: the scene is unreadable, has too few bands, or ``output`` cannot be written to.
    """
    card, started = predictor.card, time.perf_counter()
    with open_scene(scene, card.bands, nodata) as source, ExitStack() as renames:
        suffix = ".png" if source.georeference is None else ".tif"
        kinds = ["labels" + suffix, *["confidence" + suffix] * confidence, *["overlay.png"] * with_overlay]
        files = {kind.split(".")[0]: output / f"{scene.stem}_{kind}" for kind in kinds}
        temporary = {kind: renames.enter_context(replacing(path, RasterioError)) for kind, path in files.items()}
        tally = _Tally(source, len(card.classes))
        with ExitStack() as writers:
            labels_writer = writers.enter_context(_labels_writer(temporary["labels"], source, card))
            if confidence:
                confidence_writer = writers.enter_context(_confidence_writer(temporary["confidence"], source))
            for rows in predictor.rows(source, confidence, progress):
                tally.add(rows)
                labels_writer.write(rows.labels)
                if rows.confidence is not None:
                    grey = source.georeference is None
                    confidence_writer.write(_as_grey(rows.confidence) if grey else rows.confidence)
        if with_overlay:
            _overlay_picture(source, tally, card).save(temporary["overlay"], format="PNG")
    seconds = time.perf_counter() - started
    paths = list(files.values())
    return SceneMap(scene, paths, source.height, source.width, seconds, tally.shares, tally.factor)


class _Tally:
    """Counts classes and keeps a shrunken map while the rows go by."""

    def __init__(self, source: SceneSource, num_classes: int) -> None:
        self.factor = math.ceil(max(source.height, source.width) / OVERLAY_SIDE)
        self._counts = np.zeros(NODATA + 1, dtype=np.int64)
        self._num_classes = num_classes
        self._kept_rows = centres(source.height, self.factor)
        self._kept_columns = centres(source.width, self.factor)
        self._kept: list[NDArray[np.uint8]] = []

    def add(self, rows: LabelRows) -> None:
        self._counts += np.bincount(rows.labels.reshape(-1), minlength=NODATA + 1)
        first, end = np.searchsorted(self._kept_rows, (rows.start, rows.start + len(rows.labels)))
        self._kept.append(rows.labels[self._kept_rows[first:end] - rows.start][:, self._kept_columns])

    @property
    def labels(self) -> NDArray[np.uint8]:
        return np.concatenate(self._kept)

    @property
    def shares(self) -> list[float]:
        known = max(1, int(self._counts[:NODATA].sum()))
        return [int(count) / known for count in self._counts[: self._num_classes]]

    @property
    def missing(self) -> float:
        return float(self._counts[NODATA] / self._counts.sum())


def _labels_writer(path: Path, source: SceneSource, card: ModelCard) -> RasterWriter:
    shape = (source.height, source.width)
    if source.georeference is None:
        return PngWriter(path, shape, card.palette)
    tags = {f"class_{value}": name for value, name in enumerate(card.classes)}
    return GeoTiffWriter(path, shape, "uint8", NODATA, source.georeference, card.palette, tags)


def _confidence_writer(path: Path, source: SceneSource) -> RasterWriter:
    shape = (source.height, source.width)
    if source.georeference is None:
        return PngWriter(path, shape)
    return GeoTiffWriter(path, shape, "float32", float("nan"), source.georeference)


def _as_grey(confidence: NDArray[np.float32]) -> NDArray[np.uint8]:
    return (np.nan_to_num(confidence) * 255).round().astype(np.uint8)


def _overlay_picture(source: SceneSource, tally: _Tally, card: ModelCard) -> Image.Image:
    image, known = source.thumbnail(tally.factor)
    notes = [f"{source.height} x {source.width} pixels"]
    if tally.factor > 1:
        notes.append(f"shown at 1:{tally.factor}")
    if tally.missing > 0:
        notes.append(f"{tally.missing:.1%} without data")
    picture = overlay(stretch(image, known), tally.labels, card.palette)
    return with_legend(picture, card.classes, card.palette, tally.shares, notes)
