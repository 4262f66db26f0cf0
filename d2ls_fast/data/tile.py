"""Writing a data set as tiles, for disks on which many small reads from large files are slow."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy.typing as npt
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from d2ls_fast.data import DataSplits, build_datasets
from d2ls_fast.data.config import DataSettings
from d2ls_fast.data.crops import Box
from d2ls_fast.data.datasets import grid
from d2ls_fast.data.folder import Pair
from d2ls_fast.data.palettes import IGNORE_INDEX, hex_code
from d2ls_fast.data.raster import RasterProfile, write_label_raster
from d2ls_fast.data.scenes import SceneReader
from d2ls_fast.data.transforms import AugmentSettings
from d2ls_fast.errors import UserError

IMAGES, MASKS = "tile_images", "tile_masks"
SPLITS = ("train", "val", "test")
# What a PNG can hold.
_PNG_DTYPES, _PNG_BANDS = ("uint8", "uint16"), (1, 3, 4)

Progress = Callable[[int, int], None]
"""Takes the tiles written and the tiles in all."""


def tile_dataset(
    settings: DataSettings,
    augment: AugmentSettings,
    folder: Path,
    size: int = 1024,
    overlap: int = 0,
    suffix: str = ".tif",
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Write the images and masks of a data set as tiles below ``folder``.

    Training images are cut into squares of ``size`` source pixels which share ``overlap`` pixels with their
    neighbours; the last of a row or column is moved back, so that it is a whole one too. Validation and test images are
    cut as ``eval_tile`` scores them (whole without it, or where they are resampled), so that scores stay the same.
    Images keep all their bands, their type, nodata value and georeference; masks become index PNGs (255 without label).

    Args:
        augment: says, with the area, how many crops make an epoch; that number stays, too.
        suffix: ``.tif``, or ``.png`` for plain 8 or 16-bit images of 1, 3 or 4 bands.
        progress: called after each tile.

    Returns:
        The ``data:`` group of a recipe that reads the tiles, with ``root`` = ``folder``.

    Raises:
        UserError: what :func:`d2ls_fast.data.build_datasets` finds; a disk that cannot be written; an image that a PNG
            cannot hold; two images that would have the same tiles.
    """
    if settings.geoseg_compat:
        raise UserError("data.geoseg_compat pads whole images, which tiles are not; tile the data set without it")
    splits = build_datasets(settings, augment)
    plan = [
        (name, pair, box)
        for name in SPLITS
        for pair in getattr(splits, name).pairs
        for box in _boxes(pair, size, overlap, None if name == "train" else settings.eval_tile, name == "train")
    ]
    pairs = {(name, pair.name): pair for name, pair, _ in plan}
    if suffix == ".png":
        for pair in pairs.values():
            _check_png(pair)
    _check_names(list(pairs))
    readers: dict[int, tuple[SceneReader, SceneReader]] = {}
    uncached = settings.model_copy(update={"cache_gigabytes": 0.0})
    for done, (name, pair, box) in enumerate(plan, start=1):
        count = pair.header.count
        if count not in readers:
            # Where there is data is said by the bands in use; the image is written with all of them.
            readers[count] = SceneReader(uncached, splits.bands), SceneReader(uncached, range(1, count + 1))
        stem = tile_stem(name, pair.name, box)
        image = folder / f"{stem[0]}/{IMAGES}/{stem[1]}{suffix}"
        mask = folder / f"{stem[0]}/{MASKS}/{stem[1]}.png"
        of_labels, of_image = readers[count]
        with of_image.view(_unscaled(pair)) as view:
            _write_image(image, view.read(box).image, pair, box)
        with of_labels.view(_unscaled(pair)) as view:
            write_label_raster(mask, view.labels(box), splits.palette)
        progress(done, len(plan))
    return _recipe(settings, splits, folder)


def tile_stem(split: str, name: str, box: Box) -> tuple[str, str]:
    """Folder below the root (without that of the images) and stem of the tile ``box`` of the image ``name``."""
    path = PurePosixPath(name)
    return (PurePosixPath(split) / path.parent).as_posix(), f"{path.stem}_y{box[0]}_x{box[1]}"


def _boxes(pair: Pair, size: int, overlap: int, eval_tile: int | None, training: bool) -> list[Box]:
    if not training:
        return grid((pair.height, pair.width), eval_tile if pair.scale == 1.0 else None)
    rows, columns = (_starts(length, size, overlap) for length in (pair.height, pair.width))
    return [(top, left, min(size, pair.height), min(size, pair.width)) for top in rows for left in columns]


def _starts(length: int, size: int, overlap: int) -> list[int]:
    """Where tiles begin on an axis."""
    last = max(0, length - size)
    return [*range(0, last, size - overlap), last]


def _unscaled(pair: Pair) -> Pair:
    return replace(pair, scale=1.0)


def _check_png(pair: Pair) -> None:
    header = pair.header
    if header.dtype not in _PNG_DTYPES or header.count not in _PNG_BANDS or header.nodata is not None:
        raise UserError(
            f"{pair.image}: {header.count} band(s) of {header.dtype}, nodata {header.nodata}: a PNG holds 1, 3 or 4"
            " bands of uint8 or uint16 without nodata value; use --format tif"
        )


def _check_names(names: list[tuple[str, str]]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for split, name in names:
        stem = tile_stem(split, name, (0, 0, 0, 0))
        if stem in seen:
            raise UserError(f"{name}: {seen[stem]} has the same stem, so their tiles would be the same; rename one")
        seen[stem] = name


def _write_image(path: Path, image: npt.NDArray[Any], pair: Pair, box: Box) -> None:
    count, height, width = image.shape
    options: dict[str, Any] = {"driver": "PNG"}
    if path.suffix == ".tif":
        predictor = 3 if image.dtype.kind == "f" else 2
        options = {"driver": "GTiff", "compress": "deflate", "predictor": predictor, "BIGTIFF": "IF_SAFER"}
        options |= {"tiled": True, "blockxsize": 256, "blockysize": 256, "nodata": pair.header.nodata}
        place: RasterProfile | None = pair.header.georeference
        if place is not None:
            options |= {"crs": place.crs, "transform": place.transform @ rasterio.Affine.translation(box[1], box[0])}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            profile = {"count": count, "height": height, "width": width, "dtype": image.dtype.name}
            with rasterio.open(path, "w", **profile, **options) as target:
                target.write(image)
    except (OSError, RasterioError) as error:
        raise UserError(f"{path}: cannot be written ({error}); choose a folder with free space") from None


def _recipe(settings: DataSettings, splits: DataSplits, folder: Path) -> dict[str, Any]:
    named = {name: getattr(splits, name).pairs for name in SPLITS}
    scales = {}
    for name, pairs in named.items():
        for pair in pairs:
            if pair.scale != settings.scale:
                parent = (PurePosixPath(name) / PurePosixPath(pair.name).parent / IMAGES).as_posix()
                scales[glob.escape(f"{parent}/{PurePosixPath(pair.name).stem}") + "_y[0-9]*_x[0-9]*.*"] = pair.scale
    group: dict[str, Any] = {"root": str(folder), "image_folder": IMAGES, "mask_folder": MASKS}
    group |= {name: [f"{name}/**/{IMAGES}/*"] for name, pairs in named.items() if pairs}
    group |= {
        "masks": "index",
        "classes": [
            {"name": name, "colour": hex_code(colour), "value": [index]}
            for index, (name, colour) in enumerate(zip(splits.classes, settings.colours, strict=True))
        ],
        "ignore_values": [IGNORE_INDEX],
        "bands": splits.bands,
        "scale": settings.scale,
        "scales": scales,
        "mean": splits.mean,
        "std": splits.std,
        "samples_per_epoch": len(splits.train),
        "cache_gigabytes": settings.cache_gigabytes,
    }
    for key in ("nodata", "eval_tile"):
        if getattr(settings, key) is not None:
            group[key] = getattr(settings, key)
    return group
