"""Augmentation of an image of any number of bands, together with its labels where pixels move.

Every draw comes from the given ``torch.Generator``: the same generator state gives the same result.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from d2ls_fast.config import Settings

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Side = Annotated[int, Field(ge=32)]


class AugmentSettings(Settings):
    """Training crops: the LoveDA recipe of the D2LS release without mosaic, with mild photometric changes."""

    crop: Side = 512
    """Side of the square training crop in pixels."""
    batch_sizes: Annotated[list[Side], Field(min_length=1)] | None = None
    """Multi-scale training by whole batches: crop sides of which one is drawn for each optimizer step, instead of
    ``crop`` (which then only sets how many crops make an epoch). A fixed set, so that compiled graphs are reused."""
    scales: Annotated[list[Annotated[float, Field(gt=0.0, le=8.0)]], Field(min_length=1)] = Field(
        default_factory=lambda: [0.75, 1.0, 1.25, 1.5]
    )
    """Multi-scale training: one factor is drawn for each crop, before cropping."""
    largest_class: float = Field(default=0.75, gt=0.0, le=1.0)
    """A crop is drawn again while one class exceeds this share of its labelled pixels; 1 only draws again
    where nothing is labelled."""
    crop_tries: int = Field(default=10, ge=1)
    mosaic: Probability = 0.0
    """Probability of a crop joined from four, each of an image, scale and place of its own; the release has 0.25."""
    rot90: Probability = 0.5
    hflip: Probability = 0.5
    vflip: Probability = 0.5
    photometric: Probability = 0.25
    """Probability of a brightness and contrast change."""
    brightness: float = Field(default=0.25, ge=0.0)
    """Largest shift, in standard deviations of the normalised image."""
    contrast: float = Field(default=0.25, ge=0.0, lt=1.0)
    """Largest relative change of the distance from each band's mean over the crop."""
    sharpen: Probability = 0.0
    """Probability of a sharper image."""
    sharpness: float = Field(default=1.0, ge=0.0)
    """Largest amount by which it is sharpened; see :func:`sharpened`."""


def happens(probability: float, generator: torch.Generator) -> bool:
    """One draw with the given probability."""
    return float(torch.rand((), generator=generator)) < probability


def change_values(image: Tensor, settings: AugmentSettings, generator: torch.Generator) -> Tensor:
    """``image`` float32 [C, h, w], normalised, by chance brighter or darker, with more or less contrast, sharper."""
    if happens(settings.photometric, generator):
        image = _change_light(image, settings, generator)
    # No draw where it is off: recipes without it keep the crops that they had before there was sharpening.
    if settings.sharpen and happens(settings.sharpen, generator):
        image = sharpened(image, settings.sharpness * float(torch.rand((), generator=generator)))
    return image


def sharpened(image: Tensor, amount: float) -> Tensor:
    """``image + amount * (image - smooth)``, ``image`` [C, h, w] of any number of bands.

    ``smooth`` is the 3 x 3 average with weight 5 at the centre and 1 around it, over 13; pixels at the border stay.
    This is ``torchvision.transforms.v2.functional.adjust_sharpness`` of factor ``1 + amount``, which takes 1 or 3
    bands and cuts the result to 0..1, where normalised images do not lie.
    """
    if min(image.shape[-2:]) < 3:
        return image
    # Averages of 9 and of 1 pixel give the same weights as the kernel, without a convolution over bands.
    inner = image[:, 1:-1, 1:-1]
    smooth = (9 * F.avg_pool2d(image, 3, stride=1) + 4 * inner) / 13
    result = image.clone()
    result[:, 1:-1, 1:-1] = inner + amount * (inner - smooth)
    return result


def turn(image: Tensor, labels: Tensor, settings: AugmentSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A square image [C, s, s] and its labels [s, s], by chance rotated by quarter turns and mirrored, alike."""
    if happens(settings.rot90, generator):
        turns = 1 + int(torch.randint(3, (), generator=generator))
        image, labels = torch.rot90(image, turns, (-2, -1)), torch.rot90(labels, turns, (-2, -1))
    for probability, axis in ((settings.hflip, -1), (settings.vflip, -2)):
        if happens(probability, generator):
            image, labels = image.flip(axis), labels.flip(axis)
    return image.contiguous(), labels.contiguous()


def _change_light(image: Tensor, settings: AugmentSettings, generator: torch.Generator) -> Tensor:
    shift, stretch = (2.0 * torch.rand(2, generator=generator) - 1.0).tolist()
    mean = image.mean(dim=(1, 2), keepdim=True)
    return (image - mean) * (1.0 + stretch * settings.contrast) + mean + shift * settings.brightness
