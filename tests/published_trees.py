"""The seven published data sets in miniature: every folder and file name as published, a few pixels each.

In each mask class k fills the k-th vertical stripe; the first row has no label wherever the data set can say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from d2ls_fast.data.palettes import PALETTES

SIZE = (40, 64)
UNLABELLED = 255

POTSDAM_TRAIN = [f"{row}_{column}" for row in (2, 3, 4, 5) for column in (10, 11, 12)]
POTSDAM_TRAIN += [f"{row}_{column}" for row in (6, 7) for column in range(7, 13)]
POTSDAM_TEST = ["2_13", "2_14", "3_13", "3_14", "7_13"]
POTSDAM_TEST += [f"{row}_{column}" for row in (4, 5, 6) for column in (13, 14, 15)]
VAIHINGEN_TRAIN = ["1", "3", "5", "7", "11", "13", "15", "17", "21", "23", "26", "28", "30", "32", "34", "37"]
VAIHINGEN_TEST = ["2", "4", "6", "8", "10", "12", "14", "16", "20", "22", "24", "27", "29", "31", "33", "35", "38"]


def stripes(classes: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """The labels that every mask holds: uint8 [h, w], 255 in the first row."""
    row = np.arange(size[1]) * classes // size[1]
    labels = np.broadcast_to(row, size).astype(np.uint8)
    labels[0] = UNLABELLED
    return labels


def write_tree(dataset: str, root: Path, size: tuple[int, int] = SIZE) -> Path:
    """Write ``dataset`` below ``root``, which is returned."""
    globals()[f"_{dataset}"](root, size)
    return root


def save(path: Path, pixels: np.ndarray) -> None:
    """Write an array as an image file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def indexed(values: Sequence[int], unlabelled: int, size: tuple[int, int]) -> np.ndarray:
    """The stripes as stored values."""
    labels = stripes(len(values), size)
    table = np.full(256, unlabelled, np.uint8)
    table[: len(values)] = values
    return table[labels]


def coloured(palette: str, unlabelled: tuple[int, int, int] | None, size: tuple[int, int]) -> np.ndarray:
    """The stripes in a palette's colours; without a colour for no label the first row is of class 0."""
    colours = PALETTES[palette].colours
    table = np.full((256, 3), unlabelled or colours[0], np.uint8)
    table[: len(colours)] = colours
    return table[stripes(len(colours), size)]


def _image(path: Path, size: tuple[int, int], bands: int = 3) -> None:
    save(path, np.random.default_rng(0).integers(0, 255, (*size, bands), np.uint8))


def _loveda(root: Path, size: tuple[int, int]) -> None:
    number = 0
    for split, count in (("Train", 2), ("Val", 1), ("Test", 1)):
        for area in ("Urban", "Rural"):
            for _ in range(count):
                _image(root / split / area / "images_png" / f"{number}.png", size)
                if split != "Test":
                    save(root / split / area / "masks_png" / f"{number}.png", indexed(range(1, 8), 0, size))
                number += 1


def _uavid(root: Path, size: tuple[int, int]) -> None:
    for split, sequences in (("train", (1, 10)), ("val", (16,)), ("test", (21,))):
        for sequence in sequences:
            for frame in ("000000", "000100"):
                folder = root / f"uavid_{split}" / f"seq{sequence}"
                _image(folder / "Images" / f"{frame}.png", size)
                if split != "test":
                    save(folder / "Labels" / f"{frame}.png", coloured("uavid", None, size))


def _potsdam(root: Path, size: tuple[int, int]) -> None:
    full, eroded = _isprs_masks(size)
    for tile in POTSDAM_TRAIN + POTSDAM_TEST:
        name = f"top_potsdam_{tile}"
        for folder, ending, bands in (
            ("2_Ortho_RGB", "RGB", 3),
            ("3_Ortho_IRRG", "IRRG", 3),
            ("4_Ortho_RGBIR", "RGBIR", 4),
        ):
            _image(root / folder / f"{name}_{ending}.tif", size, bands)
        save(root / "5_Labels_all" / f"{name}_label.tif", full)
        save(root / "5_Labels_all_noBoundary" / f"{name}_label_noBoundary.tif", eroded)


def _vaihingen(root: Path, size: tuple[int, int]) -> None:
    full, eroded = _isprs_masks(size)
    for area in [*VAIHINGEN_TRAIN, *VAIHINGEN_TEST, "9"]:
        name = f"top_mosaic_09cm_area{area}"
        _image(root / "top" / f"{name}.tif", size)
        save(root / "gts_for_participants" / f"{name}.tif", full)
        save(root / "gts_eroded_for_participants" / f"{name}_noBoundary.tif", eroded)


def _isprs_masks(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    full = coloured("isprs", None, size)
    return full, coloured("isprs", (0, 0, 0), size)


def _isaid(root: Path, size: tuple[int, int]) -> None:
    for split, names in (("train", ("P0000", "P0002")), ("val", ("P0003",)), ("test", ("P0006",))):
        for name in names:
            _image(root / split / "images" / f"{name}.png", size)
            if split != "test":
                save(root / split / "images" / f"{name}_instance_color_RGB.png", coloured("isaid", None, size))
                save(root / split / "images" / f"{name}_instance_id_RGB.png", np.full((*size, 3), 7, np.uint8))


def _cloud(root: Path, size: tuple[int, int]) -> None:
    for split in ("train", "val", "test"):
        for number in range(2):
            _image(root / "img_dir" / split / f"{split}_{number}.png", size)
            save(root / "ann_dir" / split / f"{split}_{number}.png", indexed((128, 64, 192, 255), 0, size))


def _grass(root: Path, size: tuple[int, int]) -> None:
    for split in ("train", "val"):
        for number in range(2):
            _image(root / "img_dir" / split / f"{split}_{number}.tif", size)
            save(root / "ann_dir" / split / f"{split}_{number}.png", indexed(range(5), 255, size))
