"""One picture of many: images beside their labels, group by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from d2ls_fast.data.pictures import wrap
from d2ls_fast.data.scan import PICTURE_SIDE
from d2ls_fast.files import replacing

COLUMNS, MARGIN, LINE, SWATCH = 4, 14, 22, 14
GROUND, INK, FAINT, FAULT = (255, 255, 255), (28, 32, 36), (100, 106, 116), (214, 30, 60)


class Pictured(Protocol):
    """What a cell shows, such as a :class:`~d2ls_fast.data.scan.Scan`."""

    @property
    def name(self) -> str: ...

    @property
    def faults(self) -> Sequence[Any]: ...

    @property
    def picture(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]] | None:
        """The image, and the labels laid over it: RGB ``[h, w, 3]``, at most ``PICTURE_SIDE`` a side."""
        ...


def write_contact_sheet(
    path: Path, shown: Mapping[str, Sequence[Pictured]], classes: Sequence[str], palette: Sequence[Sequence[int]]
) -> None:
    """Write the pictures as a PNG file: a heading per group, the classes' colours at the foot.

    Each cell holds the image on the left and its labels laid over it on the right; cells with faults are framed in red.
    """
    sheet = contact_sheet(shown, classes, palette)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def contact_sheet(
    shown: Mapping[str, Sequence[Pictured]], classes: Sequence[str], palette: Sequence[Sequence[int]]
) -> Image.Image:
    """The picture that :func:`write_contact_sheet` writes."""
    groups = {name: scans for name, scans in shown.items() if scans}
    cell = 2 * PICTURE_SIDE + 4, PICTURE_SIDE + LINE
    width = MARGIN + COLUMNS * (cell[0] + MARGIN)
    title, small = ImageFont.load_default(16), ImageFont.load_default(12)
    legend = wrap([SWATCH + 6 + small.getlength(name) + MARGIN for name in classes], width - 2 * MARGIN)
    rows = sum(-(-len(scans) // COLUMNS) for scans in groups.values())
    height = MARGIN + len(groups) * 2 * LINE + rows * (cell[1] + MARGIN) + (legend[-1][1] + 2) * LINE
    canvas = Image.new("RGB", (width, height), GROUND)
    draw = ImageDraw.Draw(canvas)
    top = MARGIN
    for name, scans in groups.items():
        draw.text((MARGIN, top), name, fill=INK, font=title)
        top += LINE + LINE // 2
        for index, scan in enumerate(scans):
            left = MARGIN + index % COLUMNS * (cell[0] + MARGIN)
            _draw_cell(canvas, draw, (left, top), scan, small)
            if index % COLUMNS == COLUMNS - 1 or index == len(scans) - 1:
                top += cell[1] + MARGIN
        top += LINE // 2
    for entry, colour, (x, line) in zip(classes, palette, legend, strict=True):
        left, y = MARGIN + x, top + line * LINE
        red, green, blue = colour
        draw.rectangle((left, y, left + SWATCH, y + SWATCH), fill=(red, green, blue), outline=FAINT)
        draw.text((left + SWATCH + 6, y + SWATCH // 2), entry, fill=INK, font=small, anchor="lm")
    return canvas


def _draw_cell(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    scan: Pictured,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    assert scan.picture is not None
    left, top = corner
    height, width = scan.picture[0].shape[:2]
    for column, picture in enumerate(scan.picture):
        canvas.paste(Image.fromarray(picture), (left + column * (width + 4), top))
    if scan.faults:
        frame = (left - 3, top - 3, left + 2 * width + 6, top + height + 2)
        draw.rectangle(frame, outline=FAULT, width=3)
    name = scan.name
    while font.getlength(name) > 2 * PICTURE_SIDE:
        name = "…" + name[2:]
    draw.text((left, top + height + 4), name, fill=FAULT if scan.faults else FAINT, font=font)
