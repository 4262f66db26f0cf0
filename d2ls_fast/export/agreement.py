"""Does an exported file compute what its model computes?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from d2ls_fast.backends import backend
from d2ls_fast.data.raster import read_image
from d2ls_fast.errors import UserError
from d2ls_fast.export.exported import Exported, resample_each
from d2ls_fast.export.manifest import Manifest
from d2ls_fast.models.base import SegmentationModel, evaluating

TOLERANCE = 1e-4
"""Largest difference of float32 logits, as a part of the largest logit."""
_RANDOM = ((1, 64, 64), (2, 96, 160), (3, 75, 130), (1, 256, 192))
_TILE = 512


@dataclass(frozen=True)
class Agreement:
    """How far a file is from its model, over all images compared.

    Attributes:
        difference: largest difference of the logits, as a part of the largest logit.
        allowed: what it may be; for bf16, twice the unfused model's own distance in bf16 from float32.
        labels, pixels: how many labels differ, all of them between near ties; of how many.
        compared: batches and sizes, ``BxHxW``, and names of images.
    """

    difference: float
    allowed: float
    labels: int
    pixels: int
    compared: tuple[str, ...]


def compare(exported: Exported, model: SegmentationModel, images: list[Path]) -> Agreement:
    """Run both on random images and on tiles of ``images``.

    Raises:
        UserError: they differ by more than they may, or an image cannot be read or is too small.
    """
    worst, allowed, labels, pixels, names = 0.0, 0.0, 0, 0, []
    for name, raw in _batches(exported.manifest, images):
        inputs = _model_inputs(raw, exported.manifest)
        with evaluating(model), torch.no_grad():
            wanted: Tensor = model(inputs)
        scale = wanted.abs().max().item()
        limit = TOLERANCE if exported.manifest.precision == "fp32" else 2 * _own_error(model, inputs, wanted) / scale
        found = exported.logits(raw).to(wanted.device)
        difference = (found - wanted).abs().max().item() / scale
        if not difference <= limit:  # nor NaN
            raise UserError(
                f"the exported model differs from the original by {difference:.1e} of the largest logit on {name},"
                f" more than {limit:.1e}; nothing was written"
            )
        # Within the limit a label can only change where the two best scores are as close as that.
        changed = found.argmax(1) != wanted.argmax(1)
        worst, allowed = max(worst, difference), max(allowed, limit)
        labels, pixels = labels + int(changed.sum()), pixels + changed.numel()
        names.append(name)
    return Agreement(worst, allowed, labels, pixels, tuple(names))


def _own_error(model: SegmentationModel, inputs: Tensor, wanted: Tensor) -> float:
    with evaluating(model), torch.no_grad(), backend("reference"), torch.autocast(inputs.device.type, torch.bfloat16):
        mixed: Tensor = model(inputs)
    return (mixed.float() - wanted).abs().max().item()


def _batches(manifest: Manifest, images: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Raw images, named."""
    card, shape = manifest.card, manifest.shape
    generator = torch.Generator().manual_seed(0)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (card.mean, card.std))
    # Of a fixed shape also one image less and another size that is padded to it.
    sizes = _RANDOM if shape is None else (shape, (max(1, shape[0] - 1), shape[1] - 3, shape[2] - 7))
    for batch, height, width in sizes:
        rows, columns = (max(1, round(side / card.scale)) for side in (height, width))
        raw = torch.randn(batch, len(card.bands), rows, columns, generator=generator) * std + mean
        yield f"{batch}x{height}x{width}", raw
    for path in images:
        yield path.name, _tile(path, manifest)[None]


def _tile(path: Path, manifest: Manifest) -> Tensor:
    """The middle of an image, as large as the file takes."""
    pixels, _, _ = read_image(path, manifest.card.bands)
    height, width = (_TILE, _TILE) if manifest.shape is None else manifest.shape[1:]
    rows, columns = (max(1, round(side / manifest.card.scale)) for side in (height, width))
    if manifest.shape is not None and (pixels.shape[1] < rows or pixels.shape[2] < columns):
        raise UserError(
            f"{path}: has {pixels.shape[1]} x {pixels.shape[2]} pixels, the comparison needs {rows} x {columns};"
            " give a larger image with --check"
        )
    top, left = max(0, pixels.shape[1] - rows) // 2, max(0, pixels.shape[2] - columns) // 2
    return torch.from_numpy(pixels[:, top : top + rows, left : left + columns].astype("float32"))


def _model_inputs(raw: Tensor, manifest: Manifest) -> Tensor:
    """What the original model is given for raw images, formed apart from the code under test."""
    card = manifest.card
    values = torch.stack([(raw[:, band] - card.mean[band]) / card.std[band] for band in range(raw.shape[1])], dim=1)
    height, width = (max(1, round(side * card.scale)) for side in raw.shape[-2:])
    return resample_each(values, (height, width)).to(manifest.device)
