"""One dictionary over many windows is the dictionary of the whole scene."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from d2ls_fast.errors import UserError
from d2ls_fast.inference.features import FeatureStore, Kept
from d2ls_fast.inference.mosaic import Layers
from d2ls_fast.inference.predictor import Predictor
from d2ls_fast.inference.products.rows import MapRows
from d2ls_fast.inference.scene import map_scene
from d2ls_fast.inference.share import Share
from d2ls_fast.inference.sources import ArraySource
from d2ls_fast.models.checkpoint import ModelCard
from d2ls_fast.models.head import D2LSHead
from d2ls_fast.models.model import D2LS


class OwnCells(nn.Module):
    """Four maps, each cell of which sees nothing but its own pixels."""

    in_chans = 3

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Conv2d(3, 8, stride, stride) for stride in (4, 8, 16, 32))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [convolution(images).tanh() for convolution in self.maps]


Make = Callable[..., D2LS]


@pytest.fixture
def make_model() -> Make:
    """``make_model(**head_options)``: no pixel sees anything outside its own 32 x 32 cell before the dictionary."""

    def make(**options: Any) -> D2LS:
        torch.manual_seed(3)
        model = D2LS(OwnCells(), D2LSHead([8] * 4, 4, embed_dim=32, num_heads=2, **options), {}).eval()  # type: ignore[arg-type]
        with torch.no_grad():
            for convolution in model.backbone.maps:
                convolution.weight *= 3
            # The neck's upsampling would look across a window's edge. Only through the dictionary are these seen now.
            for projection in model.head.neck.projections[1:]:  # type: ignore[index]
                projection.weight.zero_()  # type: ignore[union-attr,operator]
            # Strong looks, so that which cells the dictionary sees matters.
            for attention in model.head.interaction.looks:
                attention.q_proj.weight *= 8
            model.head.classifier.hypernetwork[2].weight *= 100  # type: ignore[operator]
        return model

    return make


def whole(model: D2LS, card: ModelCard, image: np.ndarray) -> Tensor:
    """Class probabilities of the image, predicted at once."""
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (card.mean, card.std))
    with torch.no_grad():
        logits: Tensor = model((torch.from_numpy(image.astype(np.float32)) - mean)[None] / std)
    return logits[0].softmax(0)


def mapped(predictor: Predictor, image: np.ndarray, known: Any = None) -> MapRows:
    parts = list(predictor.rows(ArraySource(image, known), Layers(confidence=True)))
    return MapRows(0, *(np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "confidence")))


def check_same(result: MapRows, expected: Tensor, area: Any = np.s_[:, :]) -> None:
    best, labels = expected.max(0)
    confidence = result.confidence
    assert confidence is not None
    np.testing.assert_allclose(confidence[area], best.numpy()[area], atol=1e-5)
    clear = (expected.topk(2, dim=0).values.diff(dim=0)[0].abs() > 1e-4).numpy()[area]
    assert clear.mean() > 0.99
    assert np.array_equal(result.labels[area][clear], labels.numpy()[area][clear])
    assert len(np.unique(result.labels[area])) > 1


SETTINGS: list[tuple[int, int, str, dict[str, Any]]] = [
    (64, 32, "cosine", {"stages": 2}),
    (32, 0, "none", {"stages": 1}),
    (96, 40, "gaussian", {"stages": 3}),
    (64, 0, "cosine", {"stages": 2, "alternating": False}),
    (128, 64, "cosine", {"stages": 1, "dynamic": False, "prototypes": 2}),
]


@pytest.mark.parametrize(("window", "overlap", "blend", "options"), SETTINGS)
def test_many_windows_give_what_the_whole_scene_gives(
    window: int, overlap: int, blend: Any, options: Any, make_model: Make, card: ModelCard, make_image: Any
) -> None:
    model, image = make_model(**options), make_image(150, 203)
    predictor = Predictor(
        (model, card), "cpu", window=window, overlap=overlap, blend=blend, batch=3, dictionary="scene"
    )
    expected = whole(model, card, image)
    check_same(mapped(predictor, image), expected)
    # The windows' own dictionaries are something else: the comparison above is no empty one.
    apart = Predictor((model, card), "cpu", window=window, overlap=overlap, blend=blend)
    assert np.abs(mapped(apart, image).confidence - expected.amax(0).numpy()).max() > 1e-3  # type: ignore[operator]
