"""Pictures for people: legends, and truth beside prediction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from d2ls_fast.data.palettes import colourise
from d2ls_fast.data.pictures import wrap

BACKGROUND, INK, FAINT = (255, 255, 255), (25, 25, 25), (110, 110, 110)
MARGIN, LINE, SWATCH = 12, 24, 16


def with_legend(
    picture: NDArray[np.uint8],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    shares: Sequence[float],
    notes: Sequence[str] = (),
) -> Image.Image:
    """``picture`` ``[h, w, 3]`` with a panel on its right: colour, name and share (0..1) of every class; the notes."""
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    entries = [f"{name}  {share:.1%}" for name, share in zip(classes, shares, strict=True)]
    width = max([SWATCH + 8 + font.getlength(entry) for entry in entries] + [small.getlength(note) for note in notes])
    height, picture_width = picture.shape[:2]
    panel = MARGIN * 2 + LINE * len(entries) + 18 * len(notes)
    canvas = Image.new("RGB", (picture_width + int(width) + 2 * MARGIN, max(height, panel)), BACKGROUND)
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    left, top = picture_width + MARGIN, MARGIN
    for entry, colour in zip(entries, palette, strict=True):
        _swatch(draw, left, top, colour)
        draw.text((left + SWATCH + 8, top + SWATCH // 2), entry, fill=INK, font=font, anchor="lm")
        top += LINE
    for note in notes:
        draw.text((left, top + 9), note, fill=FAINT, font=small, anchor="lm")
        top += 18
    return canvas


def side_by_side(
    rows: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    headings: tuple[str, str, str] = ("image", "truth", "prediction"),
) -> Image.Image:
    """One row of pictures per ``(rgb [h, w, 3], truth [h, w], predicted [h, w])``, headings above, colours below.

    Labels outside the palette (no data, not labelled) are black.
    """
    font = ImageFont.load_default(15)
    width = max(rgb.shape[1] for rgb, _, _ in rows)
    legend = wrap([SWATCH + 8 + font.getlength(name) + 2 * MARGIN for name in classes], 3 * width + 2 * MARGIN)
    height = LINE + sum(rgb.shape[0] + MARGIN for rgb, _, _ in rows) + MARGIN + LINE * (legend[-1][1] + 1)
    canvas = Image.new("RGB", (3 * width + 4 * MARGIN, MARGIN + height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for column, heading in enumerate(headings):
        draw.text((MARGIN + column * (width + MARGIN), MARGIN), heading, fill=INK, font=font)
    top = MARGIN + LINE
    for rgb, truth, predicted in rows:
        for column, part in enumerate((rgb, colourise(truth, palette), colourise(predicted, palette))):
            canvas.paste(Image.fromarray(part), (MARGIN + column * (width + MARGIN), top))
        top += rgb.shape[0] + MARGIN
    for name, colour, (x, line) in zip(classes, palette, legend, strict=True):
        left, middle = MARGIN + x, top + line * LINE
        _swatch(draw, left, middle, colour)
        draw.text((left + SWATCH + 8, middle + SWATCH // 2), name, fill=INK, font=font, anchor="lm")
    return canvas


def _swatch(draw: ImageDraw.ImageDraw, left: int, top: int, colour: Sequence[int]) -> None:
    draw.rectangle((left, top, left + SWATCH, top + SWATCH), fill=(colour[0], colour[1], colour[2]), outline=FAINT)
