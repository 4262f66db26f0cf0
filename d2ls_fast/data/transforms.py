"""Random crops and augmentation of an image of any number of bands together with its labels.

Every draw comes from the given ``torch.Generator``: the same generator state gives the same result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from d2ls_fast.config import Settings
from d2ls_fast.data.palettes import IGNORE_INDEX

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
LabelArray = npt.NDArray[np.uint8]


class AugmentSettings(Settings):
    """Training crops: the LoveDA recipe of the D2LS release without mosaic, with mild photometric changes."""

    crop: int = Field(default=512, ge=32)
    """Side of the square training crop in pixels."""
    scales: Annotated[list[Annotated[float, Field(gt=0.0, le=8.0)]], Field(min_length=1)] = Field(
        default_factory=lambda: [0.75, 1.0, 1.25, 1.5]
    )
    """Multi-scale training: one factor is drawn for each crop, before cropping."""
    largest_class: float = Field(default=0.75, gt=0.0, le=1.0)
    """A crop is drawn again while one class exceeds this share of its labelled pixels; 1 only draws again
    where nothing is labelled."""
    crop_tries: int = Field(default=10, ge=1)
    rot90: Probability = 0.5
    hflip: Probability = 0.5
    vflip: Probability = 0.5
    photometric: Probability = 0.25
    """Probability of a brightness and contrast change."""
    brightness: float = Field(default=0.25, ge=0.0)
    """Largest shift, in standard deviations of the normalised image."""
    contrast: float = Field(default=0.25, ge=0.0, lt=1.0)
    """Largest relative change of the distance from each band's mean over the crop."""


Box = tuple[int, int, int, int]
"""Top, left, height and width in source pixels."""


def choose_scale(settings: AugmentSettings, generator: torch.Generator) -> float:
    """One of ``settings.scales``."""
    return settings.scales[int(torch.randint(len(settings.scales), (), generator=generator))]


def choose_crop(labels: LabelArray, scale: float, settings: AugmentSettings, generator: torch.Generator) -> Box:
    """A random box of ``crop / scale`` source pixels (or the whole side where the image is shorter).

    Drawn up to ``crop_tries`` times until no class exceeds ``largest_class`` of the labelled pixels and some are
    labelled; of the boxes that fail, the one with the smallest largest class is used.
    """
    side = max(1, round(settings.crop / scale))
    height, width = labels.shape
    window = min(side, height), min(side, width)
    best: Box | None = None
    best_share = float("inf")
    for _ in range(settings.crop_tries):
        top = int(torch.randint(height - window[0] + 1, (), generator=generator))
        left = int(torch.randint(width - window[1] + 1, (), generator=generator))
        share = _largest_share(labels[top : top + window[0], left : left + window[1]])
        if share < best_share:
            best, best_share = (top, left, *window), share
        if share <= settings.largest_class:
            break
    assert best is not None
    return best


def _largest_share(labels: LabelArray) -> float:
    """Share of the most frequent class among labelled pixels; 2.0 where no pixel is labelled."""
    counts = np.bincount(labels.ravel(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
    total = int(counts.sum())
    return float(counts.max()) / total if total else 2.0


def resample(image: Tensor, size: tuple[int, int]) -> Tensor:
    """``image`` [C, h, w] (floating) to [C, *size]: bilinear, antialiased where it shrinks."""
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]


def resample_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """``labels`` [h, w] (any integer or bool dtype) to ``size``: nearest pixel centre."""
    if tuple(labels.shape) == size:
        return labels
    rows = ((torch.arange(size[0]) + 0.5) * (labels.shape[0] / size[0])).long().clamp_(max=labels.shape[0] - 1)
    columns = ((torch.arange(size[1]) + 0.5) * (labels.shape[1] / size[1])).long().clamp_(max=labels.shape[1] - 1)
    return labels[rows[:, None], columns[None, :]]


def pad(
    image: Tensor, labels: Tensor, size: tuple[int, int], corner: tuple[int, int] = (0, 0)
) -> tuple[Tensor, Tensor]:
    """Put image and labels at ``corner`` of a ``size`` canvas of zeros (the mean of a normalised image) and
    unlabelled pixels."""
    height, width = labels.shape
    if (height, width) == size:
        return image, labels
    top, left = corner
    margins = (left, size[1] - width - left, top, size[0] - height - top)
    return F.pad(image, margins, value=0.0), F.pad(labels, margins, value=IGNORE_INDEX)


def augment(
    image: Tensor, labels: Tensor, settings: AugmentSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Resized source crop -> training item: photometric change, padding, rotation, flips.

    Args:
        image: float32 [C, h, w], normalised, h and w at most ``crop``.
        labels: int64 [h, w], class indices or the ignore index: converted before padding, so padding is never a class.

    Returns:
        float32 [C, crop, crop] and int64 [crop, crop].
    """

    def happens(probability: float) -> bool:
        return float(torch.rand((), generator=generator)) < probability

    if happens(settings.photometric):
        image = _change_light(image, settings, generator)
    slack = settings.crop - labels.shape[0], settings.crop - labels.shape[1]
    corner = (
        int(torch.randint(slack[0] + 1, (), generator=generator)),
        int(torch.randint(slack[1] + 1, (), generator=generator)),
    )
    image, labels = pad(image, labels, (settings.crop, settings.crop), corner)
    steps: list[Callable[[Tensor], Tensor]] = []
    if happens(settings.rot90):
        turns = 1 + int(torch.randint(3, (), generator=generator))
        steps.append(lambda x: torch.rot90(x, turns, (-2, -1)))
    if happens(settings.hflip):
        steps.append(lambda x: x.flip(-1))
    if happens(settings.vflip):
        steps.append(lambda x: x.flip(-2))
    for step in steps:
        image, labels = step(image), step(labels)
    return image.contiguous(), labels.contiguous()


def _change_light(image: Tensor, settings: AugmentSettings, generator: torch.Generator) -> Tensor:
    shift, stretch = (2.0 * torch.rand(2, generator=generator) - 1.0).tolist()
    mean = image.mean(dim=(1, 2), keepdim=True)
    return (image - mean) * (1.0 + stretch * settings.contrast) + mean + shift * settings.brightness
