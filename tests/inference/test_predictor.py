"""Windows, blending, resampling and missing data leave the map of a per-pixel model what it is without them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from graph_stand_in import standing_in
from torch import Tensor, nn

from d2ls_fast.errors import UserError
from d2ls_fast.inference.mosaic import Layers
from d2ls_fast.inference.predictor import Predictor
from d2ls_fast.inference.sources import ArraySource
from d2ls_fast.models.checkpoint import ModelCard, save_checkpoint
from d2ls_fast.models.model import create_model


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


def test_a_tensor_gives_tensors_and_a_batch_gives_a_batch(pixel_model: Any, card: ModelCard, make_image: Any) -> None:
    images = np.stack([make_image(70, 90), make_image(70, 90)[:, ::-1]]).astype(np.int32)
    predictor = Predictor((pixel_model, card), window=48, overlap=8)
    labels, confidence = predictor.predict(torch.from_numpy(images), return_confidence=True)
    assert (labels.dtype, labels.shape, confidence.dtype) == (torch.uint8, (2, 70, 90), torch.float32)
    for image, label in zip(images, labels, strict=True):
        assert np.array_equal(label, predictor.predict(image))
    assert np.array_equal(predictor.predict(images), labels)


def test_threads_share_a_predictor(pixel_model: Any, card: ModelCard, make_image: Any, expected_labels: Any) -> None:
    predictor = Predictor((pixel_model, card), window=48, overlap=8, batch=2)
    images = [make_image(60 + number, 100) for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(predictor.predict, images))
    for image, labels in zip(images, found, strict=True):
        assert np.array_equal(labels, expected_labels(pixel_model, card, image))


def test_a_checkpoint_is_all_it_needs(tmp_path: Path, make_image: Any) -> None:
    model = create_model("mobilenetv3_small_050", 4, embed_dim=32, num_heads=2, stages=1)
    card = ModelCard(
        model=model.config,
        classes=list("abcd"),
        palette=[[0, 0, i] for i in range(4)],
        bands=[1, 2, 3],
        mean=[400.0, 500.0, 600.0],
        std=[200.0, 100.0, 150.0],
    )
    save_checkpoint(tmp_path / "m.safetensors", model, card)
    image = make_image(64, 96)
    labels = Predictor(tmp_path / "m.safetensors", "cpu").predict(image)
    mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (card.mean, card.std))
    expected = model.predict(torch.from_numpy((image.astype(np.float32) - mean) / std)[None])[0]
    assert np.array_equal(labels, expected.numpy())


@pytest.mark.parametrize("tta", ["none", "flips"])
def test_a_device_out_of_memory_gets_smaller_batches(
    tta: str, pixel_model: Any, card: ModelCard, make_image: Any
) -> None:
    class Small(nn.Module):
        """Has room for two images."""

        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 2:
                raise torch.OutOfMemoryError("no room")
            return pixel_model(images)

    image = make_image(100, 300)
    expected = Predictor((pixel_model, card), window=48, overlap=8, batch=1, tta=tta).predict(image)
    predictor = Predictor((Small(), card), window=48, overlap=8, batch=9, tta=tta)
    assert np.array_equal(predictor.predict(image), expected)
    assert predictor.batch <= 2 or predictor.tta.batch <= 2


def test_one_window_that_does_not_fit_is_an_error(card: ModelCard, make_image: Any) -> None:
    class Hungry(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate much")

    with pytest.raises(UserError, match="one window of 48 x 48 pixels; give a smaller --window"):
        Predictor((Hungry(), card), window=48, overlap=8, batch=4).predict(make_image(100, 100))


def test_a_gpu_that_is_not_there_is_refused(pixel_model: Any, card: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Predictor((pixel_model, card)).device.type == "cpu"
    with pytest.raises(UserError, match="PyTorch sees no GPU here; use cpu"):
        Predictor((pixel_model, card), "cuda")


def test_a_compiled_model_gives_the_same_labels(card: ModelCard, make_image: Any) -> None:
    model = create_model("mobilenetv3_small_050", 4, embed_dim=32, num_heads=2, stages=1)
    image = make_image(100, 64)
    options: dict[str, Any] = {"window": 64, "overlap": 16, "batch": 1}
    plain, compiled = (Predictor((model, card), compile=each, **options).predict(image) for each in (False, True))
    assert (plain != compiled).mean() < 0.01


@pytest.mark.parametrize("dictionary", ["window", "scene"])
def test_replayed_graphs_give_the_same_labels(card: ModelCard, make_image: Any, dictionary: Any) -> None:
    """Real graphs where PyTorch sees a GPU; elsewhere they are recorded and replayed on the CPU."""
    model = create_model("mobilenetv3_small_050", 4, embed_dim=32, num_heads=2, stages=1)
    image = make_image(100, 160)
    options: dict[str, Any] = {"window": 64, "overlap": 32, "batch": 3, "dictionary": dictionary}
    plain = Predictor((model, card), **options).predict(image)
    with ExitStack() as stack:
        if not torch.cuda.is_available():
            stack.enter_context(standing_in())
            stack.enter_context(patch("d2ls_fast.inference.predictor._check_graph", lambda device: None))
        graphed = Predictor((model, card), compile="graph", **options).predict(image)
    assert np.array_equal(plain, graphed) and len(np.unique(plain)) > 1


def test_a_graph_without_a_gpu_is_refused(card: ModelCard) -> None:
    with pytest.raises(UserError, match="compile 'graph': a CUDA graph needs a GPU, the device is cpu"):
        Predictor((create_model("resnet18", 4), card), "cpu", compile="graph")
