"""Windows, blending, resampling and missing data leave the map of a per-pixel model what it is without them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from d2ls_fast.errors import UserError
from d2ls_fast.inference.mosaic import Layers
from d2ls_fast.inference.predictor import Predictor
from d2ls_fast.inference.sources import ArraySource
from d2ls_fast.models.checkpoint import ModelCard


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 300), (32, 32), (33, 257), (200, 150)])
@pytest.mark.parametrize(("window", "overlap", "batch"), [(32, 0, 1), (64, 16, 3), (40, 37, 4), (512, 64, 4)])
def test_the_windowed_map_is_the_whole_map(
    height: int,
    width: int,
    window: int,
    overlap: int,
    batch: int,
    pixel_model: Any,
    card: ModelCard,
    make_image: Any,
    expected_labels: Any,
) -> None:
    image = make_image(height, width)
    predictor = Predictor((pixel_model, card), window=window, overlap=overlap, batch=batch)
    labels = predictor.predict(image)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, expected_labels(pixel_model, card, image))
    sizes = pixel_model.sizes[:-1]
    assert max(size[0] for size in sizes) <= batch
    assert {size[-2:] for size in sizes} == {(max(32, min(window, height)), max(32, min(window, width)))}


@pytest.mark.parametrize("scale", [0.35, 0.5, 1.7])
def test_scaled_windows_agree_with_one_window(scale: float, pixel_model: Any, card: ModelCard, make_image: Any) -> None:
    image, card = make_image(203, 150), replace(card, scale=scale)
    known = np.ones((203, 150), bool)
    known[90:140, 20:100] = False
    results = []
    for window in (512, 36):
        predictor = Predictor((pixel_model, card), window=window, overlap=8)
        blocks = list(predictor.rows(ArraySource(image, known), Layers(confidence=True)))
        assert [block.start for block in blocks] == np.cumsum(
            [0, *[len(block.labels) for block in blocks[:-1]]]
        ).tolist()
        results.append([np.concatenate([getattr(b, name) for b in blocks]) for name in ("labels", "confidence")])
    (labels, confidence), (windowed_labels, windowed_confidence) = results
    np.testing.assert_allclose(windowed_confidence, confidence, atol=1e-5)
    assert (labels != windowed_labels).mean() < 1e-3  # ties of blended probabilities may fall either way
    assert ((labels == 255) == ~known).all()


def test_the_scale_reaches_the_model_and_the_map_keeps_the_size(pixel_model: Any, card: ModelCard) -> None:
    image = np.full((3, 300, 200), 400, np.uint16)
    image[:, :, 100:] = 900
    labels = Predictor((pixel_model, replace(card, scale=0.5))).predict(image)
    assert pixel_model.sizes == [(1, 3, 150, 100)]
    assert labels.shape == (300, 200)
    # Away from the edge, upsampled probabilities give the flat areas' own classes.
    plain = Predictor((pixel_model, card)).predict(image)
    assert np.array_equal(labels[:, :97], plain[:, :97])
    assert np.array_equal(labels[:, 103:], plain[:, 103:])
    assert plain[0, 0] != plain[0, -1]


def test_missing_pixels_are_255_and_do_not_reach_the_network(
    pixel_model: Any, card: ModelCard, make_image: Any
) -> None:
    image = make_image(80, 200).astype(np.float32)
    image[:, :, :90] = -9999
    image[1, 40, 150] = np.nan
    image[0, 10, 120] = -9999  # only one band: data
    labels, confidence = Predictor((pixel_model, card), window=40, overlap=4).predict(
        image, nodata=-9999, return_confidence=True
    )
    missing = np.zeros((80, 200), bool)
    missing[:, :90] = missing[40, 150] = True
    assert np.array_equal(labels == 255, missing)
    assert np.array_equal(np.isnan(confidence), missing)
    windows = sum(size[0] for size in pixel_model.sizes)
    assert windows == 12  # of 3 x 6: those of two columns see nothing but missing pixels


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_missing_pixels_do_not_spread_when_the_image_is_resampled(
    scale: float, pixel_model: Any, card: ModelCard, make_image: Any
) -> None:
    image = make_image(60, 60).astype(np.float32)
    image[:, 30:, :] = np.nan
    labels, confidence = Predictor((pixel_model, replace(card, scale=scale))).predict(image, return_confidence=True)
    assert (labels[:30] < 4).all()
    assert np.isfinite(confidence[:30]).all()
    assert (labels[30:] == 255).all()


def test_confidence_is_the_probability_of_the_label(pixel_model: Any, card: ModelCard, make_image: Any) -> None:
    image = make_image(100, 90)
    _, confidence = Predictor((pixel_model, card), window=48, overlap=8).predict(image, return_confidence=True)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (card.mean, card.std))
    scores = pixel_model(((torch.from_numpy(image.astype(np.float32)) - mean) / std)[None])[0]
    expected = scores.softmax(0).amax(0)
    np.testing.assert_allclose(confidence, expected.detach().numpy(), atol=1e-6)


def test_windows_blend_over_their_overlap(card: ModelCard) -> None:
    class Numbered(nn.Module):
        """The first window is sure of class 0, the second of class 1."""

        def __init__(self) -> None:
            super().__init__()
            self.seen = 0

        def forward(self, images: Tensor) -> Tensor:
            scores = torch.zeros(len(images), 4, *images.shape[-2:])
            scores[:, self.seen] = 30
            self.seen += 1
            return scores

    image = np.zeros((3, 32, 56), np.uint8)
    labels, confidence = Predictor((Numbered(), card), window=32, overlap=8, batch=1).predict(
        image, return_confidence=True
    )
    assert (labels[:, :28] == 0).all()
    assert (labels[:, 28:] == 1).all()
    assert (confidence[:, :24] > 0.999).all()
    assert (np.diff(confidence[0, 24:28]) < 0).all()
    np.testing.assert_allclose(confidence[0, 24:32], confidence[0, 24:32][::-1], atol=1e-6)


def test_progress_counts_all_windows(pixel_model: Any, card: ModelCard, make_image: Any) -> None:
    calls: list[tuple[int, int]] = []
    Predictor((pixel_model, card), window=64, overlap=0, batch=2).predict(
        make_image(128, 192), progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(done, 6) for done in range(1, 7)]


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_only_open_rows_are_in_memory(scale: float, pixel_model: Any, card: ModelCard) -> None:
    """A tall scene is handed out long before its last row is read."""

    class Endless:
        height, width = 100_000, 40
        lowest = 0

        def read(self, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[Any, Any]:
            self.lowest = max(self.lowest, rows[1])
            shape = (rows[1] - rows[0], columns[1] - columns[0])
            return np.zeros((3, *shape), np.uint8), np.ones(shape, bool)

    source = Endless()
    for block in Predictor((pixel_model, replace(card, scale=scale)), window=64, overlap=8, batch=1).rows(source):
        assert source.lowest <= block.start + (64 + 2 * 64) / scale  # its own window and those read ahead
        if block.start > 2000:
            break


def test_mixed_precision_runs_the_model_in_bfloat16(pixel_model: Any, card: ModelCard, make_image: Any) -> None:
    image = make_image(64, 64)
    exact = Predictor((pixel_model, card)).predict(image, return_confidence=True)[1]
    mixed = Predictor((pixel_model, card), dtype=torch.bfloat16).predict(image, return_confidence=True)[1]
    assert 1e-5 < np.abs(mixed - exact).max() < 0.05


@pytest.mark.parametrize(
    "image", [np.zeros((2, 9, 9)), np.zeros((9, 9)), np.zeros((3, 0, 9)), np.zeros((3, 9, 9), complex)]
)
def test_an_image_the_model_cannot_take_is_refused(image: Any, pixel_model: Any, card: ModelCard) -> None:
    with pytest.raises(UserError, match=r"the model takes real numbers \[3, height, width\]"):
        Predictor((pixel_model, card)).predict(image)


@pytest.mark.parametrize(("option", "message"), [({"window": 31}, "window 31"), ({"batch": 0}, "batch 0")])
def test_impossible_options_are_refused(option: Any, message: str, pixel_model: Any, card: ModelCard) -> None:
    with pytest.raises(UserError, match=message):
        Predictor((pixel_model, card), **option)


def test_more_classes_than_a_label_raster_holds_are_refused(pixel_model: Any, card: ModelCard) -> None:
    with pytest.raises(UserError, match="256 classes; label rasters hold at most 255"):
        Predictor((pixel_model, replace(card, classes=[str(i) for i in range(256)])))
