"""Test-time augmentation: one image seen flipped, turned and scaled, and the scores merged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from d2ls_fast.errors import UserError
from d2ls_fast.models.backbones import nearest
from d2ls_fast.models.base import STRIDE

Merge = Literal["logits", "probabilities"]


class View(NamedTuple):
    """One way of laying an image ``[..., h, w]``, and back: a quarter turn or none, then flips along ``dims``."""

    turned: bool
    dims: tuple[int, ...]

    def apply(self, image: Tensor) -> Tensor:
        return (image.rot90(1, (-2, -1)) if self.turned else image).flip(self.dims)

    def undo(self, scores: Tensor) -> Tensor:
        scores = scores.flip(self.dims)
        return scores.rot90(-1, (-2, -1)) if self.turned else scores


class Preset(NamedTuple):
    """Every combination of the named transforms with every scale is one pass."""

    horizontal: bool = False
    vertical: bool = False
    rot90: bool = False
    """A quarter turn, or none: with both flips, the eight orientations of a square."""
    scales: tuple[float, ...] = (1.0,)

    @property
    def views(self) -> list[View]:
        """The passes at each scale."""
        both = (False, True)
        switches = product(both[: 1 + self.rot90], both[: 1 + self.vertical], both[: 1 + self.horizontal])
        return [View(turned, (-2,) * down + (-1,) * across) for turned, down, across in switches]


_SCALES = (0.75, 1.0, 1.25, 1.5)
PRESETS = {
    "none": Preset(),
    "flips": Preset(horizontal=True, vertical=True),
    "flips-scales-8": Preset(horizontal=True, scales=_SCALES),
    "flips-scales-16": Preset(horizontal=True, vertical=True, scales=_SCALES),
    "flips-rot90-scales": Preset(horizontal=True, vertical=True, rot90=True, scales=(0.5, *_SCALES)),
}
"""By what they do; the release calls ``flips`` ``lr`` and each of the last three, per data set, ``d4``."""


class TTA:
    """Merges a model's scores over the passes of a preset.

    Scaled inputs are resampled bilinearly with antialiasing, their scores brought back bilinearly. Passes of equal size
    go through the model together.

    Args:
        preset: a name of :data:`PRESETS`.
        merge: the mean over the passes is taken of ``logits``, as the release does, or of ``probabilities``.
        batch: images per model call at most; bounds the memory, changes nothing else.

    Raises:
        UserError: an unknown preset or merge, or a batch below 1.
    """

    def __init__(self, preset: str = "none", merge: str = "logits", batch: int = 4) -> None:
        if preset not in PRESETS:
            raise UserError(f"tta {preset!r}: no such preset; {nearest(preset, tuple(PRESETS))}")
        if merge not in get_args(Merge):
            raise UserError(f"tta merge {merge!r}: no such mean; take {' or '.join(get_args(Merge))}")
        if batch < 1:
            raise UserError(f"tta batch {batch} must be at least 1")
        self.name, self.merge, self.batch = preset, merge, batch
        self._views, self._scales = PRESETS[preset].views, PRESETS[preset].scales

    @property
    def passes(self) -> int:
        """How many versions of an image the model sees."""
        return len(self._views) * len(self._scales)

    def __str__(self) -> str:
        if self.passes == 1:
            return "without test-time augmentation"
        return f"with test-time augmentation {self.name} ({self.passes} passes, mean of {self.merge})"

    def __call__(self, model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Merged class scores of ``images`` ``[B, bands, H, W]``, of any size: ``[B, K, H, W]``, at least float32.

        The mean over the passes of the logits, or the logarithm of the mean of their softmax: either way the softmax
        of the result is the merged probabilities.

        Args:
            model: in evaluation mode; gives logits ``[b, K, h, w]`` for ``[b, bands, h, w]`` from 32 x 32.
        """
        height, width = images.shape[-2:]
        total: Tensor | None = None
        for scale in self._scales:
            size = max(1, round(height * scale)), max(1, round(width * scale))
            scaled = _resized(images, size, antialias=True)
            for view, image, logits in self._passes(model, scaled):
                scores = _resized(view.undo(logits)[None], (height, width))[0]
                if self.merge == "probabilities":
                    scores = scores.softmax(0)
                if total is None:
                    total = scores.new_zeros(len(images), *scores.shape)
                total[image] += scores
        assert total is not None
        mean = total / self.passes
        return mean.log() if self.merge == "probabilities" else mean

    def _passes(self, model: Callable[[Tensor], Tensor], images: Tensor) -> Iterator[tuple[View, int, Tensor]]:
        """Every view of every image, by its number, with its logits ``[K, h, w]`` as the view lies."""
        square = images.shape[-2] == images.shape[-1]
        # A quarter turn of an image that is not square has another size: it cannot share a batch.
        for turned in ({False, True},) if square else ({False}, {True}):
            wanted = [(view, image) for view in self._views if view.turned in turned for image in range(len(images))]
            for start in range(0, len(wanted), self.batch):
                part = wanted[start : start + self.batch]
                logits = _logits(model, torch.stack([view.apply(images[image]) for view, image in part]))
                for (view, image), scores in zip(part, logits, strict=True):
                    yield view, image, scores


def _logits(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Logits at least float32; below 32 pixels, the least a model takes, the edge is repeated."""
    height, width = images.shape[-2:]
    below, right = max(0, STRIDE - height), max(0, STRIDE - width)
    if below or right:
        images = pad(images, (0, right, 0, below), mode="replicate")
    logits = model(images)[..., :height, :width]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _resized(images: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    if images.shape[-2:] == size:
        return images
    return interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=antialias)
