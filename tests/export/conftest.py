"""A model whose graph is small, so that it is exported in seconds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from d2ls_fast.models.checkpoint import ModelCard
from d2ls_fast.models.head import D2LSHead
from d2ls_fast.models.model import D2LS


class TinyBackbone(nn.Module):
    """Four maps at strides 4, 8, 16 and 32 from one strided convolution each."""

    in_chans = 2
    channels = (8, 8, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(c, 8, s, s) for c, s in ((2, 4), (8, 2), (8, 2), (8, 2)))

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = []
        for level in self.levels:
            images = level(images).relu()
            maps.append(images)
        return maps


@pytest.fixture(scope="session")
def tiny_model() -> D2LS:
    torch.manual_seed(3)
    config = {"backbone": "tiny", "num_classes": 3, "in_chans": 2}
    head = D2LSHead(TinyBackbone.channels, 3, embed_dim=16, num_heads=2, stages=1)
    return D2LS(TinyBackbone(), head, config).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def card() -> ModelCard:
    """Of raw units about 0..1000; a class name that is not ASCII."""
    return ModelCard(
        model={"backbone": "tiny", "num_classes": 3, "in_chans": 2},
        classes=["water", "Grünland", 'a "town"'],
        palette=[[0, 0, 255], [255, 255, 0], [255, 0, 0]],
        bands=[2, 1],
        mean=[400.0, 500.0],
        std=[200.0, 100.0],
    )
