"""A picture of what a finished archive holds, read back from it: to look at before it is submitted."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from d2ls_fast.data.contact_sheet import write_contact_sheet
from d2ls_fast.data.palettes import colourise
from d2ls_fast.data.pictures import rgb_bands, stretch, thin, thumbnail
from d2ls_fast.data.raster import read_image
from d2ls_fast.data.scan import PICTURE_SIDE
from d2ls_fast.inference.submissions.contest import Contest, Files

SHOWN = 24


class _Cell(NamedTuple):
    name: str
    picture: tuple[NDArray[np.uint8], NDArray[np.uint8]]
    faults: Sequence[Any] = ()


def write_preview(contest: Contest, archive: Path, images: Files, path: Path) -> None:
    """Write at most :data:`SHOWN` test images, evenly spread, beside their maps in the checked ``archive`` (.png)."""
    chosen = list(images)[:: -(-len(images) // SHOWN)]
    with ZipFile(archive) as opened:
        cells = [_cell(contest, opened.read(contest.member(key)), key, images[key]) for key in chosen]
    write_contact_sheet(path, {f"{contest.title}: {archive.name}": cells}, contest.classes, contest.colours)


def _cell(contest: Contest, data: bytes, identifier: str, image: Path) -> _Cell:
    stored = np.asarray(Image.open(io.BytesIO(data)))
    painted = colourise(stored, contest.colours) if stored.ndim == 2 else stored
    rgb = thumbnail(stretch(thin(rgb_bands(read_image(image)[0]), 4 * PICTURE_SIDE)), PICTURE_SIDE)
    small = Image.fromarray(painted).resize((rgb.shape[1], rgb.shape[0]), Image.Resampling.NEAREST)  # pure colours
    return _Cell(identifier, (rgb, np.asarray(small)))
