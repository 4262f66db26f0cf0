"""GeoTIFFs: every pixel, overviews, the cloud-optimised order, and the check of what was written."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.errors import RasterioError

from d2ls_fast.inference.products.geotiff import GeoTiffWriter
from d2ls_fast.inference.products.tiff_check import check_geotiff

HEIGHT, WIDTH = 1100, 700
VALUES = np.random.default_rng(0).integers(0, 200, (2, HEIGHT, WIDTH), dtype=np.uint8)


def write(path: Path, place: dict[str, Any], *, nodata: float | None = 255, cog: bool = False, strip: int = 90) -> Path:
    shape = (2, HEIGHT, WIDTH)
    with GeoTiffWriter(path, shape, "uint8", place, nodata=nodata, overviews=Resampling.average, cog=cog) as writer:
        for top in range(0, HEIGHT, strip):
            part = VALUES[:, top : top + strip]
            writer.write(part, part[0] > 20)
        writer.finish()
    return path


def directories(data: bytes) -> list[dict[int, tuple[int, int, bytes]]]:
    """The directories of a classic little-endian TIFF in the file's order: type, count and value field of each tag."""
    assert data[:4] == b"II*\0"
    (offset,), found = struct.unpack_from("<I", data, 4), []
    while offset:
        (count,) = struct.unpack_from("<H", data, offset)
        entries = [struct.unpack_from("<HHI4s", data, offset + 2 + 12 * i) for i in range(count)]
        found.append({tag: (kind, length, value) for tag, kind, length, value in entries} | {-1: (0, offset, b"")})
        (offset,) = struct.unpack_from("<I", data, offset + 2 + 12 * count)
    return found


def numbers(data: bytes, entry: tuple[int, int, bytes]) -> tuple[int, ...]:
    kind, count, value = entry
    letter, size = {3: ("H", 2), 4: ("I", 4)}[kind]
    if count * size <= 4:
        return struct.unpack_from(f"<{count}{letter}", value)
    return struct.unpack_from(f"<{count}{letter}", data, struct.unpack("<I", value)[0])


@pytest.mark.parametrize("cog", [False, True])
@pytest.mark.parametrize("strip", [1, 90, 512, 2000])
def test_every_pixel_is_written_once_whatever_the_strips(
    tmp_path: Path, place: dict[str, Any], cog: bool, strip: int
) -> None:
    path = write(tmp_path / "a.tif", place, cog=cog, strip=strip)
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]
    with rasterio.open(path) as raster:
        assert np.array_equal(raster.read(), VALUES)
        assert (raster.crs, raster.transform) == (place["crs"], place["transform"])
        assert raster.block_shapes == [(512, 512)] * 2
        assert raster.overviews(1) == [2, 4]
        assert raster.compression.name == "deflate"
        assert (raster.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG") is cog
    with rasterio.open(path, overview_level=0) as half:
        blocks = VALUES.reshape(2, HEIGHT // 2, 2, WIDTH // 2, 2).mean(axis=(2, 4))
        assert np.abs(half.read() - blocks).max() <= 0.5


@pytest.mark.parametrize("nodata", [255, None])
def test_a_cog_has_its_directories_first_and_its_smallest_overview_before_the_rest(
    tmp_path: Path, place: dict[str, Any], nodata: float | None
) -> None:
    """The rules of the standard that readers of parts of the file rely on."""
    data = write(tmp_path / "a.tif", place, nodata=nodata, cog=True).read_bytes()
    found = directories(data)
    assert all(322 in entries and 323 in entries for entries in found)  # tiled
    images = [entries for entries in found if not (254 in entries and numbers(data, entries[254])[0] & 4)]
    assert [numbers(data, entries[256])[0] for entries in images] == [WIDTH, WIDTH // 2, WIDTH // 4]
    assert len(found) == len(images) * (1 if nodata else 2)  # a mask for each
    places = [entries[-1][1] for entries in found]
    assert places == sorted(places)
    tiles = [numbers(data, entries[324]) for entries in images]
    assert places[-1] < min(min(offsets) for offsets in tiles)
    assert all(min(larger) > max(smaller) for larger, smaller in pairwise(tiles))


def test_a_mask_tells_data_from_zero(tmp_path: Path, place: dict[str, Any]) -> None:
    for cog in (False, True):
        with rasterio.open(write(tmp_path / f"{cog}.tif", place, nodata=None, cog=cog)) as raster:
            assert raster.nodata is None
            assert np.array_equal(raster.dataset_mask() > 0, VALUES[0] > 20)
    assert not list(tmp_path.glob("*.msk"))


def test_the_same_values_give_the_same_bytes(tmp_path: Path, place: dict[str, Any]) -> None:
    for cog in (False, True):
        contents = {write(tmp_path / "a.tif", place, cog=cog, strip=strip).read_bytes() for strip in (90, 300)}
        assert len(contents) == 1


@pytest.mark.parametrize("nodata", [255, None])
def test_a_file_that_lost_something_is_noticed(tmp_path: Path, place: dict[str, Any], nodata: float | None) -> None:
    path = write(tmp_path / "a.tif", place, nodata=nodata)
    check_geotiff(path, [2, 4], 512)
    whole = path.read_bytes()
    with pytest.raises(OSError, match="not all of it reached the disk"):
        check_geotiff(path, [2, 4, 8], 512)
    for size in (100, len(whole) // 2, len(whole) * 9 // 10, len(whole) - 1000):
        path.write_bytes(whole[:size])
        with pytest.raises((OSError, RasterioError)):
            check_geotiff(path, [2, 4], 512)
