"""An exported file that has been opened: raw images in, labels out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from d2ls_fast.data.resample import resample
from d2ls_fast.errors import UserError
from d2ls_fast.export.manifest import SMALLEST, Manifest
from d2ls_fast.models.base import STRIDE
from d2ls_fast.models.checkpoint import ModelCard

Images = TypeVar("Images", Tensor, NDArray[Any])


class Exported:
    """A model from a file, of any format; made by :func:`~d2ls_fast.export.load.load_exported`.

    Images are given as they are: in raw units, bands in the order of the card, any real type, of any size that the file
    takes. They are normalised and resampled with the card's numbers, and padded as the original model pads them.

    Attributes:
        card: classes, palette, bands, mean, std and scale of the model.
        manifest: format, operators, precision, device and sizes of the file.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], manifest: Manifest) -> None:
        self._run = run
        self.manifest = manifest
        self._mean = torch.tensor(manifest.card.mean, device=manifest.device).view(-1, 1, 1)
        self._std = torch.tensor(manifest.card.std, device=manifest.device).view(-1, 1, 1)

    @property
    def card(self) -> ModelCard:
        return self.manifest.card

    def predict(self, images: Images) -> Images:
        """Labels uint8 (int16 above 256 classes) of ``images`` ``[B, bands, h, w]`` or ``[bands, h, w]``.

        Returns:
            ``[B, h, w]`` or ``[h, w]``, an array for an array and a tensor for a tensor.

        Raises:
            UserError: the images' shape or type is not what the file takes.
        """
        logits = self._logits(images)
        size = (images.shape[-2], images.shape[-1])
        if logits.shape[-2:] != size:  # as whole scenes are mapped: probabilities come back to the images' own size
            logits = resample_each(logits.softmax(1), size)
        labels = logits.argmax(1).to(torch.uint8 if logits.shape[1] <= 256 else torch.int16)
        return _like(labels, images)

    def logits(self, images: Images) -> Images:
        """Class scores float32 ``[B, K, H, W]`` (``[K, H, W]`` of one image), H and W being the images' size times
        the card's scale; arguments and errors as :meth:`predict`."""
        return _like(self._logits(images), images)

    def _logits(self, images: Tensor | NDArray[Any]) -> Tensor:
        bands = len(self.card.bands)
        real = images.dtype.kind in "buif" if isinstance(images, np.ndarray) else not images.is_complex()
        if images.ndim not in (3, 4) or images.shape[-3] != bands or 0 in images.shape or not real:
            raise UserError(
                f"images must be real numbers [B, {bands}, h, w] or [{bands}, h, w] for this file,"
                f" got {list(images.shape)} of {images.dtype}"
            )
        raw = torch.from_numpy(images.astype(np.float32)) if isinstance(images, np.ndarray) else images
        values = (raw if raw.ndim == 4 else raw[None]).to(self.manifest.device, torch.float32)
        known = values.isfinite().all(1, keepdim=True)
        # A missing pixel becomes the mean of the training images, as everywhere in the package.
        values = ((values - self._mean) / self._std).where(known, 0.0)
        height, width = (max(1, round(side * self.card.scale)) for side in values.shape[-2:])
        values = resample_each(values, (height, width))
        padded = F.pad(values, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        self._check_size(height, width, padded)
        with torch.no_grad():
            return self._in_batches(padded)[..., :height, :width]

    def _check_size(self, height: int, width: int, padded: Tensor) -> None:
        shape = self.manifest.shape
        fits = min(padded.shape[-2:]) >= SMALLEST if shape is None else tuple(padded.shape[-2:]) == shape[1:]
        if not fits or min(height, width) < STRIDE:
            raise UserError(
                f"images are {height} x {width} pixels to the model, the file was exported for {self.manifest.sizes};"
                " cut or pad them, or export again with --static and --size"
            )

    def _in_batches(self, images: Tensor) -> Tensor:
        if self.manifest.shape is None:
            return self._run(images)
        batch, total = self.manifest.shape[0], len(images)
        # The last batch is filled up with its last image again.
        filled = torch.cat((images, images[-1:].expand(-total % batch, -1, -1, -1)))
        return torch.cat([self._run(part.contiguous()) for part in filled.split(batch)])[:total]


def resample_each(images: Tensor, size: tuple[int, int]) -> Tensor:
    """``[B, C, h, w]`` to ``[B, C, *size]``."""
    if tuple(images.shape[-2:]) == size:
        return images
    return torch.stack([resample(image, size) for image in images])


def _like(result: Tensor, images: Images) -> Images:
    result = result if images.ndim == 4 else result[0]
    return result.cpu().numpy() if isinstance(images, np.ndarray) else result
