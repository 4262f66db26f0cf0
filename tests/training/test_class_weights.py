"""Class weights from the training masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console
from tiny_recipe import write_recipe

from d2ls_fast.config import load_settings
from d2ls_fast.data import build_datasets
from d2ls_fast.errors import UserError
from d2ls_fast.training.class_weights import class_counts, frequency_weights, with_class_weights
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.fit import SETTINGS, fit

COUNTS = np.array([[60, 20, 0, 0], [100, 0, 20, 0]])


def test_median_frequency_counts_the_masks_that_hold_the_class() -> None:
    frequencies = np.array([160 / 200, 20 / 80, 20 / 120])
    assert frequency_weights(COUNTS, "median") == pytest.approx([*(0.25 / frequencies), 0.0])


def test_inverse_frequency_gives_a_mean_weight_of_one() -> None:
    weights = frequency_weights(COUNTS, "inverse")
    assert weights == pytest.approx([200 / (3 * 160), 200 / (3 * 20), 200 / (3 * 20), 0.0])
    assert np.dot(weights, COUNTS.sum(0)) == pytest.approx(COUNTS.sum())


def test_masks_of_the_training_split_are_counted(tmp_path: Path) -> None:
    settings = load_settings(TrainSettings, write_recipe(tmp_path), ["loss.class_weights=frequencies"])
    data = build_datasets(settings.data)
    masks = [np.array(Image.open(pair.mask)) for pair in data.train.pairs]
    wanted = [[int((mask == k).sum()) for k in range(2)] for mask in masks]
    seen: list[None] = []
    assert class_counts(settings.data, data.train.pairs, lambda: seen.append(None)).tolist() == wanted
    assert len(seen) == len(masks) < 12
    resolved = with_class_weights(settings, data.train.pairs, Console(quiet=True)).loss.class_weights
    assert resolved == pytest.approx(frequency_weights(np.array(wanted), "median"), rel=1e-5)


def test_a_run_trains_with_the_weights_and_writes_them_down(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, steps=1, loss={"class_weights": "frequencies", "frequency_form": "inverse"})
    console = Console(record=True, width=200)
    report = fit(load_settings(TrainSettings, recipe), console=console)
    weights = report["settings"]["loss"]["class_weights"]
    assert weights[0] < 1 < weights[1]  # bright pixels are the fewer ones
    assert yaml.safe_load((tmp_path / "run" / SETTINGS).read_text())["loss"]["class_weights"] == weights
    assert f"class weights: dark {weights[0]:.3g}, bright {weights[1]:.3g}" in console.export_text()


def test_masks_without_labels_are_refused(tmp_path: Path) -> None:
    settings = load_settings(TrainSettings, write_recipe(tmp_path), ["loss.class_weights=frequencies"])
    with pytest.raises(UserError, match=r"loss\.class_weights=frequencies: no pixel of the training masks is labelled"):
        with_class_weights(settings, [], Console(quiet=True))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("rare", r"key 'loss\.class_weights' is 'rare': input should be 'frequencies'"),
        ("3", r"key 'loss\.class_weights' is 3: "),
        ("[1, -1]", r"key 'loss\.class_weights\.1' is -1: input should be greater than or equal to 0"),
    ],
)
def test_wrong_weights_name_the_key(tmp_path: Path, value: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_settings(TrainSettings, write_recipe(tmp_path), [f"loss.class_weights={value}"])
