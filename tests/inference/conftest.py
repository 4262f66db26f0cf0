"""A model that looks at single pixels, so that the right map of any image is known without windows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from d2ls_fast.models.checkpoint import ModelCard


class PixelModel(nn.Module):
    """Class scores are a linear function of the pixel's bands; ``sizes`` records the batches seen."""

    def __init__(self, bands: int = 3, classes: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.weight = nn.Parameter(torch.randn(classes, bands, generator=generator))
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(tuple(images.shape))
        return torch.einsum("kc,bchw->bkhw", self.weight, images)


@pytest.fixture
def pixel_model() -> PixelModel:
    return PixelModel()


@pytest.fixture
def card() -> ModelCard:
    """Of a three-band, four-class model in units of about 0..1000."""
    return ModelCard(
        model={},
        classes=["water", "field", "forest", "town"],
        palette=[[0, 0, 255], [255, 255, 0], [0, 128, 0], [255, 0, 0]],
        bands=[1, 2, 3],
        mean=[400.0, 500.0, 600.0],
        std=[200.0, 100.0, 150.0],
    )


@pytest.fixture
def make_image() -> Callable[..., NDArray[np.uint16]]:
    """``make_image(height, width)``: random uint16 ``[3, height, width]``."""

    def make(height: int, width: int) -> NDArray[np.uint16]:
        return np.random.default_rng(height * 1000 + width).integers(0, 1000, (3, height, width), dtype=np.uint16)

    return make


@pytest.fixture
def expected_labels() -> Callable[..., NDArray[np.uint8]]:
    """``expected_labels(model, card, image)``: the map without windows."""

    def label(model: PixelModel, card: ModelCard, image: NDArray[np.uint16]) -> NDArray[np.uint8]:
        mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (card.mean, card.std))
        with torch.no_grad():
            scores = model(torch.from_numpy((image.astype(np.float32) - mean) / std)[None])
        return scores[0].argmax(0).numpy().astype(np.uint8)

    return label
