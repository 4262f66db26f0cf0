"""The preview shows what the archive holds, beside the test images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published_trees import SIZE, save
from submission_files import COLOURS, Published, png, right_files, zipped

from d2ls_fast.inference.submissions import CONTESTS
from d2ls_fast.inference.submissions.preview import SHOWN, write_preview


@pytest.mark.parametrize(("name", "colour"), [("loveda", (159, 129, 183)), ("uavid", (192, 0, 192))])
def test_a_map_is_drawn_in_its_colours(
    name: str, colour: tuple[int, int, int], published: Callable[[str], Published], tmp_path: Path
) -> None:
    """Maps of one class, here barren and static car, give two areas of its colour as large as the test images."""
    labels = np.full(SIZE, 4 if name == "loveda" else 5, np.uint8)
    files = dict.fromkeys(right_files(name), png(labels if name == "loveda" else COLOURS[labels]))
    archive = zipped(tmp_path / "archive.zip", files)
    write_preview(CONTESTS[name], archive, published(name).images, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert 2 * labels.size <= (sheet == colour).all(-1).sum() <= 2 * labels.size + 300  # and the legend's swatch


def test_of_many_images_a_few_are_drawn(tmp_path: Path) -> None:
    images = {str(number): tmp_path / f"{number}.png" for number in range(3 * SHOWN + 1)}
    for path in images.values():
        save(path, np.zeros((*SIZE, 3), np.uint8))
    colour, cell = (255, 0, 0), np.ones(SIZE, np.uint8)
    archive = zipped(tmp_path / "archive.zip", {path.name: png(cell) for path in images.values()})
    write_preview(CONTESTS["loveda"], archive, images, tmp_path / "sheet.png")
    painted = (np.asarray(Image.open(tmp_path / "sheet.png")) == colour).all(-1).sum()
    assert SHOWN // 2 * cell.size < painted < (SHOWN + 1) * cell.size
