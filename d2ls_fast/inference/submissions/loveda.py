"""The LoveDA contest: a flat archive of grey PNGs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from d2ls_fast.inference.submissions.contest import Contest


class LoveDA(Contest):
    """``ID.png`` for the test image ``ID.png``, 8-bit grey, class indices 0..6.

    The published masks hold 1..7 and 0 for no data; a submission has no such value. Source: the data set's authors
    (github.com/Junjue-Wang/LoveDA).
    """

    name = "loveda"
    title = "LoveDA"
    test_images = 1796
    layout = "Test/{Urban,Rural}/images_png/ID.png, or ID.png alone"
    map_name = "ID.png or ID_labels.png (.tif)"

    def _images(self, folder: Path) -> Iterator[tuple[str, Path]]:
        areas = [base / area / "images_png" for base in (folder / "Test", folder) for area in ("Urban", "Rural")]
        # The folder above Train, Val and Test; Test itself; or the images put into one folder, as the contest has them.
        for folders in (areas[:2], areas[2:], [folder]):
            found = [path for part in folders for path in part.glob("*.png") if path.stem.isdigit()]
            if found:
                yield from ((path.stem, path) for path in found)
                return

    def _identifier(self, relative: Path) -> str:
        return relative.name

    def member(self, identifier: str) -> str:
        return f"{identifier}.png"

    def picture(self, labels: NDArray[np.uint8]) -> Image.Image:
        return Image.fromarray(labels)
