"""The UAVid contest: a folder of coloured PNGs for every sequence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from d2ls_fast.data.palettes import colourise
from d2ls_fast.inference.submissions.contest import Contest

_SEQUENCE = re.compile(r"seq\d+")


class UAVid(Contest):
    """``seqN/Labels/NNNNNN.png`` for the test image ``seqN/Images/NNNNNN.png``, RGB in the published colours.

    Identifiers are ``seqN/NNNNNN``. Source: the data set's authors (uavid.nl).
    """

    name = "uavid"
    title = "UAVid"
    test_images = 150
    layout = "uavid_test/seqN/Images/NNNNNN.png"
    map_name = "seqN/NNNNNN.png or seqN/NNNNNN_labels.png (.tif)"

    def _images(self, folder: Path) -> Iterator[tuple[str, Path]]:
        # The folder above uavid_train, uavid_val and uavid_test, or uavid_test itself.
        for base in (folder / "uavid_test", folder):
            found = [
                (f"{path.parts[-3]}/{path.stem}", path)
                for path in base.glob("seq*/Images/*.png")
                if _SEQUENCE.fullmatch(path.parts[-3]) and path.stem.isdigit()
            ]
            if found:
                yield from found
                return

    def _identifier(self, relative: Path) -> str | None:
        sequences = [part for part in relative.parts if _SEQUENCE.fullmatch(part)]
        return f"{sequences[-1]}/{relative.name}" if sequences else None

    def member(self, identifier: str) -> str:
        sequence, frame = identifier.split("/")
        return f"{sequence}/Labels/{frame}.png"

    def picture(self, labels: NDArray[np.uint8]) -> Image.Image:
        return Image.fromarray(colourise(labels, self.colours))
