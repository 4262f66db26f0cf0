"""PNGs written by rows are what any reader of the format expects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image, PngImagePlugin

from d2ls_fast.inference.products.png import PngWriter

VALUES = np.random.default_rng(0).integers(0, 5, (73, 41), dtype=np.uint8) ** 3
PALETTE = [[10, 20, 30], [200, 0, 5]]


def write(path: Path, strip: int, palette: list[list[int]] | None = None) -> Path:
    with PngWriter(path, (73, 41), palette, {"model": "D2LS, größer"}) as writer:
        for top in range(0, 73, strip):
            writer.write(VALUES[top : top + strip])
        writer.finish()
    return path


@pytest.mark.parametrize("strip", [1, 10, 73])
def test_grey_values_come_back(tmp_path: Path, strip: int) -> None:
    with Image.open(write(tmp_path / "a.png", strip)) as picture:
        assert isinstance(picture, PngImagePlugin.PngImageFile)
        assert picture.mode == "L"
        assert np.array_equal(np.asarray(picture), VALUES)
        assert picture.text == {"model": "D2LS, größer"}
    with rasterio.open(tmp_path / "a.png") as raster:
        assert np.array_equal(raster.read(1), VALUES)


def test_indices_and_their_colours_come_back(tmp_path: Path) -> None:
    with Image.open(write(tmp_path / "a.png", 7, PALETTE)) as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture), VALUES)
        rgb = np.asarray(picture.convert("RGB"))
    assert (rgb[VALUES == 0] == PALETTE[0]).all()
    assert (rgb[VALUES == 1] == PALETTE[1]).all()


def test_a_picture_given_up_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), PngWriter(tmp_path / "a.png", (73, 41)) as writer:
        writer.write(VALUES[:20])
        raise KeyboardInterrupt
    with pytest.raises(OSError), Image.open(tmp_path / "a.png") as picture:
        picture.load()
