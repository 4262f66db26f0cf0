"""Torch data sets: random training crops, and whole images or grid tiles for evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from d2ls_fast.data.crops import Box, Piece, Size, after_scaling, choose_crop, choose_scale, mosaic, pad, place
from d2ls_fast.data.folder import Pair
from d2ls_fast.data.normalisation import normalise
from d2ls_fast.data.padding import view_of
from d2ls_fast.data.resample import resample, resample_labels
from d2ls_fast.data.scenes import SceneReader, SceneView
from d2ls_fast.data.transforms import AugmentSettings, change_values, happens, turn

SMALLEST_SIDE = 32
"""The model's least height and width; smaller evaluation images are padded to it."""


class Item(TypedDict):
    """What the data sets give."""

    image: Tensor
    """float32 [bands, h, w], normalised."""
    label: Tensor
    """int64 [h, w], class index or 255."""
    name: str


class TrainCrops(Dataset[Item]):
    """Random augmented crops. Images are chosen in proportion to their area.

    Item ``i`` of ``n`` falls on the ``i``-th of ``n`` equal shares of the total area (the place within it is random),
    so an epoch covers all images evenly. Randomness comes from ``generator`` where given, else from torch's default
    generator, which a ``DataLoader`` seeds in each worker.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        reader: SceneReader,
        mean: Sequence[float],
        std: Sequence[float],
        settings: AugmentSettings,
        samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.pairs = list(pairs)
        self.settings = settings
        self._reader, self._mean, self._std = reader, list(mean), list(std)
        self._generator = generator
        areas = np.array([math.prod(pair.extent) for pair in self.pairs], np.float64)
        self._limits = areas.cumsum() / areas.sum()
        self._samples = samples or max(len(self.pairs), math.ceil(areas.sum() / settings.crop**2))

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> Item:
        return self.item(index, self.settings.crop)

    def item(self, index: int, crop: int) -> Item:
        """Item ``index`` with crops of ``crop`` pixels a side instead of those of the settings."""
        if not 0 <= index < self._samples:
            raise IndexError(index)
        draws = self._generator if self._generator is not None else torch.default_generator
        pair = self._pair_at((index + float(torch.rand((), generator=draws))) / self._samples)
        # No draw where it is off: recipes without it keep the crops that they had before there were mosaics.
        if self.settings.mosaic and happens(self.settings.mosaic, draws):
            others = [self._pair_at(float(torch.rand((), generator=draws))) for _ in range(3)]
            pairs = iter([pair, *others])
            image, labels = mosaic(crop, lambda size: self._piece(next(pairs), size, draws), draws)
        else:
            image, labels = self._piece(pair, (crop, crop), draws)
        image, labels = turn(image, labels, self.settings, draws)
        return {"image": image, "label": labels, "name": pair.name}

    def _pair_at(self, position: float) -> Pair:
        """The image at a position 0..1 of the total area."""
        return self.pairs[min(int(np.searchsorted(self._limits, position, side="right")), len(self.pairs) - 1)]

    def _piece(self, pair: Pair, size: Size, draws: torch.Generator) -> Piece:
        """A random crop of an image, brought to ``size``: scaled, its values changed, padded where it is too small."""
        scale = choose_scale(self.settings, draws)
        with view_of(self._reader, pair) as view:
            box = choose_crop(pair.extent, view.labels, size, scale, self.settings, draws)
            image, labels = _cut(view, box, self._mean, self._std)
        scaled = after_scaling(box, size, scale)
        image = change_values(resample(image, scaled), self.settings, draws)
        return place(image, resample_labels(labels, scaled), size, draws)


class WholeImages(Dataset[Item]):
    """Images without augmentation, whole (of varying size: use batch size 1) or cut into a grid of square tiles.

    Edge tiles, and images smaller than :data:`SMALLEST_SIDE`, are padded with zeros and unlabelled pixels; every
    pixel is in exactly one item.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        reader: SceneReader,
        mean: Sequence[float],
        std: Sequence[float],
        tile: int | None = None,
    ) -> None:
        self.pairs = list(pairs)
        self._reader, self._mean, self._std, self._tile = reader, list(mean), list(std), tile
        self._items = [(pair, box) for pair in self.pairs for box in grid(pair.extent, tile)]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Item:
        pair, box = self._items[index]
        with view_of(self._reader, pair) as view:
            image, labels = _cut(view, box, self._mean, self._std)
        size = (self._tile, self._tile) if self._tile else (max(SMALLEST_SIDE, box[2]), max(SMALLEST_SIDE, box[3]))
        image, labels = pad(image, labels, size)
        name = pair.name if self._tile is None else f"{pair.name}@{box[0]},{box[1]}"
        return {"image": image, "label": labels, "name": name}


def grid(size: Size, tile: int | None) -> list[Box]:
    """The squares of ``tile`` pixels (smaller at the lower and right edge) that cover a scene once; None: all of it."""
    if tile is None:
        return [(0, 0, *size)]
    return [
        (top, left, min(tile, size[0] - top), min(tile, size[1] - left))
        for top in range(0, size[0], tile)
        for left in range(0, size[1], tile)
    ]


def _cut(view: SceneView, box: Box, mean: Sequence[float], std: Sequence[float]) -> Piece:
    image, labels, valid = view.read(box)
    return normalise(image, valid, mean, std), torch.from_numpy(labels.astype(np.int64))
