"""Data: folders of imagery and masks -> normalised tensors for training and evaluation.

    splits = build_datasets(settings)
    splits.train[0]["image"]    # float32 [bands, crop, crop]
    splits.val[0]["label"]      # int64 [h, w], 255 where unlabelled

Files are found, paired and compared by their headers when the data sets are built; pixel values are checked when
first read.
"""

from __future__ import annotations

from dataclasses import dataclass

from d2ls_fast.data import normalisation
from d2ls_fast.data.config import ClassSettings, DataSettings, SplitSettings
from d2ls_fast.data.datasets import Item, TrainCrops, WholeImages
from d2ls_fast.data.folder import check_masks_have_images, check_scales, common_bands
from d2ls_fast.data.padding import padded
from d2ls_fast.data.palettes import IGNORE_INDEX, PALETTES, colourise
from d2ls_fast.data.scenes import SceneReader
from d2ls_fast.data.splits import split_pairs
from d2ls_fast.data.transforms import AugmentSettings

__all__ = [
    "IGNORE_INDEX",
    "PALETTES",
    "AugmentSettings",
    "ClassSettings",
    "DataSettings",
    "DataSplits",
    "Item",
    "SplitSettings",
    "TrainCrops",
    "WholeImages",
    "build_datasets",
    "colourise",
]


@dataclass(frozen=True)
class DataSplits:
    """The data sets of a recipe and what a checkpoint has to remember of them. ``val`` and ``test`` may be empty."""

    train: TrainCrops
    val: WholeImages
    test: WholeImages
    classes: list[str]
    palette: list[list[int]]
    """RGB of each class, 0..255."""
    bands: list[int]
    """Source bands in model order, counted from 1."""
    mean: list[float]
    std: list[float]
    """Per band, in raw pixel units."""
    scale: float
    """The resampling factor of images without one of their own."""


def build_datasets(settings: DataSettings, augment: AugmentSettings | None = None) -> DataSplits:
    """Find, pair, check and divide the files of a data set.

    Args:
        settings: the ``data:`` group of a recipe.
        augment: training crops; by default those of :class:`AugmentSettings`.

    Raises:
        UserError: one line that names the file or key and the remedy: missing root, no images, image without mask,
            mask without image, sizes or band counts that differ, unreadable file, image in two splits, nothing to
            train on.
    """
    split = split_pairs(settings)
    check_scales(settings, split.all)
    if settings.published is None:
        check_masks_have_images(settings, split.all)
    bands = common_bands(settings, split.all)
    reader = SceneReader(settings, bands)
    mean, std = normalisation.resolve(settings, split.train, bands, reader)
    held_out = SceneReader(settings, bands)
    if settings.geoseg_compat and settings.eval_tile is not None:
        for part in (split.train, split.val, split.test):
            part[:] = [padded(pair, settings.eval_tile) for pair in part]
    crops = augment if augment is not None else AugmentSettings()
    return DataSplits(
        train=TrainCrops(split.train, reader, mean, std, crops, settings.samples_per_epoch),
        val=WholeImages(split.val, held_out, mean, std, settings.eval_tile),
        test=WholeImages(split.test, held_out, mean, std, settings.eval_tile),
        classes=settings.class_names,
        palette=[list(colour) for colour in settings.colours],
        bands=bands,
        mean=mean,
        std=std,
        scale=settings.scale,
    )
