"""Blending is exact, and a part of a map is the same part of the whole, wherever it begins and ends."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from d2ls_fast.inference import mosaic
from d2ls_fast.inference.mosaic import Layers
from d2ls_fast.inference.predictor import Predictor
from d2ls_fast.inference.products.rows import MapRows
from d2ls_fast.inference.sources import ArraySource
from d2ls_fast.models.checkpoint import ModelCard

ALL = Layers(confidence=True, probabilities=True)


class Elementwise(nn.Module):
    """Scores of a pixel that do not depend, in any bit, on which other pixels are computed with it."""

    def forward(self, images: Tensor) -> Tensor:
        red, green, blue = images.unbind(1)
        return torch.stack([red, green * 1.1, blue * 0.9, red * green], 1)


def whole(parts: list[MapRows]) -> list[np.ndarray]:
    assert [part.start for part in parts] == np.cumsum([0, *(len(part.labels) for part in parts[:-1])]).tolist()
    return [
        np.concatenate([np.asarray(part[layer]) for part in parts], axis=-2) for layer in range(1, len(MapRows._fields))
    ]


@pytest.mark.parametrize("blend", ["cosine", "gaussian", "none"])
@pytest.mark.parametrize(("window", "overlap"), [(32, 0), (64, 16), (40, 39), (48, 25), (96, 64)])
def test_where_windows_agree_the_map_is_theirs_bit_for_bit(
    window: int, overlap: int, blend: Any, card: ModelCard, make_image: Any
) -> None:
    source = ArraySource(make_image(133, 171))
    expected = whole(list(Predictor((Elementwise(), card), window=512).rows(source, ALL)))
    # A softmax of another number of pixels must not round otherwise, or nothing could be compared.
    predictor = Predictor((Elementwise(), card), window=window, overlap=overlap, blend=blend, batch=3)
    for found, right in zip(whole(list(predictor.rows(source, ALL))), expected, strict=True):
        assert np.array_equal(found, right, equal_nan=True)


@pytest.mark.parametrize("scale", [1.0, 0.4, 1.7])
@pytest.mark.parametrize(("window", "overlap"), [(32, 0), (48, 20), (40, 33)])
def test_any_part_is_the_same_part_of_the_whole(
    window: int, overlap: int, scale: float, card: ModelCard, make_image: Any
) -> None:
    known = np.ones((231, 90), bool)
    known[40:170, 30:] = False
    source = ArraySource(make_image(231, 90), known)
    predictor = Predictor((Elementwise(), replace(card, scale=scale)), window=window, overlap=overlap, batch=2)
    parts = list(predictor.rows(source, ALL))
    for start in range(len(parts)):
        found = list(predictor.rows(source, ALL, part=range(start, min(start + 2, len(parts)))))
        for one, other in zip(found, parts[start : start + 2], strict=True):
            assert one.start == other.start
            assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one[1:], other[1:], strict=True))


def test_sums_on_disk_are_the_sums_in_memory(card: ModelCard, make_image: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ArraySource(make_image(150, 150))
    predictor = Predictor((Elementwise(), card), window=64, overlap=40)
    expected = whole(list(predictor.rows(source, ALL)))
    monkeypatch.setattr(mosaic, "IN_MEMORY", 1000)
    for found, right in zip(whole(list(predictor.rows(source, ALL))), expected, strict=True):
        assert np.array_equal(found, right)


@pytest.mark.filterwarnings("error::ResourceWarning")
@pytest.mark.parametrize("taken", [1, 2, 10])
def test_a_map_that_is_left_closes_its_files(taken: int, card: ModelCard, make_image: Any) -> None:
    predictor = Predictor((Elementwise(), card), window=64, overlap=40)
    rows = predictor.rows(ArraySource(make_image(150, 150)))
    for _, _ in zip(rows, range(taken), strict=False):
        pass
    rows.close()  # type: ignore[attr-defined]
    gc.collect()


def test_layers_that_are_not_wanted_are_not_made(card: ModelCard, make_image: Any) -> None:
    for rows in Predictor((Elementwise(), card)).rows(ArraySource(make_image(40, 40))):
        assert rows.confidence is None
        assert rows.probabilities is None


def test_probabilities_are_of_every_class_and_nothing_where_there_is_no_data(card: ModelCard, make_image: Any) -> None:
    known = np.ones((50, 60), bool)
    known[:, 20:] = False
    (rows,) = Predictor((Elementwise(), card)).rows(ArraySource(make_image(50, 60), known), ALL)
    assert rows.probabilities is not None
    assert rows.confidence is not None
    assert rows.probabilities.shape == (4, 50, 60)
    assert (rows.probabilities[:, :, 20:] == 0).all()
    best = rows.probabilities[:, :, :20].max(0)
    np.testing.assert_allclose(best / 255, rows.confidence[:, :20], atol=0.5 / 255 + 1e-6)
