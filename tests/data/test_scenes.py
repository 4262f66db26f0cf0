from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from d2ls_fast.data import build_datasets
from d2ls_fast.data.folder import make_pair, pool
from d2ls_fast.data.normalisation import IMAGENET_MEAN, normalise
from d2ls_fast.data.resample import resample, resample_labels
from d2ls_fast.data.scenes import SceneReader, valid_pixels
from d2ls_fast.errors import UserError


@pytest.fixture
def one_scene(settings, tmp_path, write_tiff, write_png):
    """``one_scene(image [bands, h, w], labels, nodata of the file, **settings)`` -> (settings, pair)."""

    def make(image: np.ndarray, labels: np.ndarray, file_nodata: float | None = None, **changes):
        write_tiff(tmp_path / "images" / "x.tif", image, nodata=file_nodata)
        write_png(tmp_path / "masks" / "x.png", labels)
        chosen = settings(**changes)
        return chosen, make_pair(chosen, pool(chosen)[0])

    return make


@pytest.mark.parametrize("declared", [True, False])
def test_pixels_without_data_are_unlabelled_and_read_as_the_mean(one_scene, declared):
    image = np.full((2, 32, 32), 500, np.uint16)
    image[:, :, 16:] = 1500
    image[:, :4] = 0
    image[0, 10, 10] = 0  # zero in one band only is a value
    changes = {} if declared else {"nodata": 0}
    chosen, _ = one_scene(image, np.zeros((32, 32), np.uint8), 0 if declared else None, train=["images/*"], **changes)
    chosen = chosen.model_copy(update={"val": ["images/*"], "allow_overlap": True})
    splits = build_datasets(chosen)
    item = splits.val[0]
    assert (item["label"][:4] == 255).all() and (item["label"][4:] == 0).all()
    assert not item["image"][:, :4].any()
    assert splits.mean[1] == pytest.approx(1000) and splits.std[1] == pytest.approx(500)
    assert item["image"][1, 5, 0] == pytest.approx(-1.0)


def test_nan_counts_as_no_data():
    image = np.zeros((2, 1, 3), np.float32)
    image[0, 0, 1] = np.nan
    assert valid_pixels(image, None).tolist() == [[True, False, True]]
    assert valid_pixels(np.zeros((1, 2, 2), np.uint8), None) is None


def test_resampling_keeps_type_and_does_not_bleed_nodata(one_scene):
    image = np.full((1, 64, 64), 40000, np.uint16)
    image[:, :, :20] = 0
    labels = np.ones((64, 64), np.uint8)
    chosen, pair = one_scene(image, labels, 0, scale=0.5)
    scene = SceneReader(chosen, [1]).read(pair)
    assert scene.image.dtype == np.uint16 and scene.image.shape == (1, 32, 32)
    assert scene.valid is not None and (scene.image[0][scene.valid] == 40000).all()
    assert (scene.labels[:, :10] == 255).all() and (scene.labels[:, 10:] == 1).all()


def test_images_are_averaged_and_labels_are_not(one_scene):
    image = np.zeros((1, 64, 64), np.uint8)
    image[:, :, ::2] = 200
    labels = np.indices((64, 64))[1].astype(np.uint8) % 2
    chosen, pair = one_scene(image, labels, scale=0.25)
    scene = SceneReader(chosen, [1]).read(pair)
    assert np.abs(scene.image[0, 3:-3, 3:-3].astype(int) - 100).max() <= 4 and set(np.unique(scene.labels)) <= {0, 1}


@pytest.mark.parametrize("scale", [0.5, 0.61, 1.7])
def test_a_resampled_scene_is_the_interpolated_image(one_scene, scale):
    random = np.random.default_rng(0)
    image = random.integers(0, 60000, (2, 70, 90)).astype(np.uint16)
    labels = random.integers(0, 2, (70, 90)).astype(np.uint8)
    chosen, pair = one_scene(image, labels, scale=scale)
    scene = SceneReader(chosen, [1, 2]).read(pair)
    expected = resample(torch.from_numpy(image.astype(np.float32)), pair.size).numpy()
    assert np.abs(scene.image - expected).max() < 1.0  # rounding to whole values, and float32
    assert np.array_equal(scene.labels, resample_labels(torch.from_numpy(labels), pair.size).numpy())


def test_images_are_kept_within_the_budget(one_scene, tmp_path):
    chosen, pair = one_scene(np.zeros((3, 64, 64), np.uint8), np.zeros((64, 64), np.uint8))
    pairs = [pair, *(replace(pair, mask=Path(shutil.copy(pair.mask, tmp_path / f"{n}.png"))) for n in (2, 3))]

    def kept(gigabytes):
        reader = SceneReader(chosen.model_copy(update={"cache_gigabytes": gigabytes}), [1, 2, 3])
        first = [reader.read(one) for one in pairs]
        return [reader.read(one) is scene for one, scene in zip(pairs, first, strict=True)]

    assert kept(1.0) == [True] * 3 and kept(20e-6) == [True, False, False] and kept(1e-6) == [False] * 3


@pytest.mark.parametrize("gigabytes", [0.0, 1.0])
def test_an_image_may_come_with_two_masks(one_scene, write_png, tmp_path, gigabytes):
    chosen, pair = one_scene(np.zeros((3, 64, 64), np.uint8), np.zeros((64, 64), np.uint8), cache_gigabytes=gigabytes)
    eroded = replace(pair, mask=write_png(tmp_path / "eroded.png", np.ones((64, 64), np.uint8)))
    reader = SceneReader(chosen, [1, 2, 3])
    for one, label in ((pair, 0), (eroded, 1), (pair, 0)):
        with reader.view(one) as view:
            assert (view.labels((0, 0, 64, 64)) == label).all() and (reader.read(one).labels == label).all()


def test_of_images_that_do_not_fit_the_last_is_held(one_scene):
    chosen, pair = one_scene(np.zeros((3, 64, 64), np.uint8), np.zeros((64, 64), np.uint8), cache_gigabytes=0.0)
    reader = SceneReader(chosen, [1, 2, 3])
    assert reader.read(pair) is reader.read(pair)


def test_normalisations(settings, tmp_path, pairs_on_disk, write_tiff):
    pairs_on_disk("x")
    half = build_datasets(settings(normalisation="half"))
    assert half.mean == [127.0] * 3 and half.std == [128.0] * 3
    assert build_datasets(settings(normalisation="imagenet")).mean == IMAGENET_MEAN
    given = build_datasets(settings(mean=[1, 2, 3], std=[4, 5, 6]))
    assert given.mean == [1, 2, 3] and given.std == [4, 5, 6]
    measured = build_datasets(settings())
    assert measured.mean == pytest.approx([100] * 3) and measured.std == pytest.approx([50] * 3)
    with pytest.raises(UserError, match=r"data\.mean has 1 values for 3 bands"):
        build_datasets(settings(mean=[1], std=[1]))
    with pytest.raises(UserError, match="imagenet is for 3 bands, not 2"):
        build_datasets(settings(normalisation="imagenet", bands=[1, 2]))
    write_tiff(tmp_path / "images" / "x.png", np.zeros((3, 40, 48), np.uint16))
    for name in ("imagenet", "half"):
        with pytest.raises(UserError, match=rf"pixels are uint16, data\.normalisation: {name} is for uint8"):
            build_datasets(settings(normalisation=name))


def test_a_constant_band_is_only_centred(one_scene):
    chosen, _ = one_scene(np.full((1, 32, 32), 1000, np.uint16), np.zeros((32, 32), np.uint8))
    splits = build_datasets(chosen)
    assert splits.mean == [1000.0] and splits.std == [1.0]


def test_training_images_without_any_data(one_scene):
    chosen, _ = one_scene(np.zeros((1, 32, 32), np.uint16), np.zeros((32, 32), np.uint8), 0)
    with pytest.raises(UserError, match="no training image has a pixel with data"):
        build_datasets(chosen)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_normalise_takes_any_type(dtype):
    values = normalise(np.array([[[10, 30]]], dtype), None, [20.0], [10.0])
    assert values.dtype.is_floating_point and values.tolist() == [[[-1.0, 1.0]]]
