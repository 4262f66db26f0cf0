"""Scoring a checkpoint on a split."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from tiny_recipe import CLASSES, write_images, write_recipe

from d2ls_fast.config import load_settings
from d2ls_fast.data import build_datasets
from d2ls_fast.errors import UserError
from d2ls_fast.inference.tta import TTA
from d2ls_fast.models.checkpoint import load_checkpoint, save_checkpoint
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.evaluate import evaluate_model, pick_device
from d2ls_fast.training.fit import fit
from d2ls_fast.training.metrics import ConfusionMatrix, scores_from_matrix
from d2ls_fast.training.report import matrix_table, save_matrix_picture, score_table, scores_to_json
from d2ls_fast.training.score import score_checkpoint

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and its finished run; tests only read it."""
    folder = tmp_path_factory.mktemp("trained")
    fit(load_settings(TrainSettings, write_recipe(folder)), console=QUIET)
    return folder


def score(folder: Path, output: Path, *overrides: str, checkpoint: Path | None = None, split: str = "val") -> Any:
    settings = load_settings(TrainSettings, folder / "recipe.yaml", overrides)
    return score_checkpoint(settings, checkpoint or folder / "run/best.safetensors", split, output, "recipe", QUIET)


def test_the_scores_of_training_are_found_again_and_written(trained: Path, tmp_path: Path) -> None:
    result = score(trained, tmp_path / "scores")
    report = json.loads((trained / "run/report.json").read_text())
    assert {key: result[key] for key in report["best"]} == report["best"]
    assert json.loads((tmp_path / "scores/val.json").read_text()) == result
    assert sum(map(sum, result["matrix"])) == 3 * 46 * 48  # three images, two unlabelled rows each
    with Image.open(tmp_path / "scores/val.png") as picture:
        assert picture.width > 300
    assert {path.name for path in (tmp_path / "scores").iterdir()} == {"val.html", "val.json", "val.png"}


def test_images_are_normalised_as_the_checkpoint_says(trained: Path, tmp_path: Path) -> None:
    expected = score(trained, tmp_path / "a")
    assert score(trained, tmp_path / "b", "data.normalisation=imagenet")["matrix"] == expected["matrix"]


def test_every_item_is_predicted_whole(trained: Path) -> None:
    model, _ = load_checkpoint(trained / "run/best.safetensors")
    settings = load_settings(TrainSettings, trained / "recipe.yaml")
    dataset = build_datasets(settings.data).val
    items = []
    scores = evaluate_model(model, dataset, 2, progress=lambda: items.append(1))
    matrix = torch.zeros(2, 2, dtype=torch.int64)
    for item in (dataset[index] for index in range(len(dataset))):
        guess = model(item["image"][None]).argmax(1)[0]
        for truth in range(2):
            for predicted in range(2):
                matrix[truth, predicted] += int(((item["label"] == truth) & (guess == predicted)).sum())
    assert scores.matrix == matrix.tolist()
    assert len(items) == len(dataset) == 3


def test_augmented_labels_come_from_the_merged_scores(trained: Path) -> None:
    model, _ = load_checkpoint(trained / "run/best.safetensors")
    dataset = build_datasets(load_settings(TrainSettings, trained / "recipe.yaml").data).val
    matrix = ConfusionMatrix(2)
    with torch.no_grad():
        for item in (dataset[index] for index in range(len(dataset))):
            image = item["image"][None]
            views = [model(image.flip(dims)).flip(dims) for dims in ((), (-1,), (-2,), (-2, -1))]
            matrix.update(sum(views).argmax(1), item["label"][None])  # type: ignore[union-attr]
    model.train()
    assert evaluate_model(model, dataset, 2, tta=TTA("flips")).matrix == matrix.matrix.tolist()
    assert model.training


def test_a_device_without_memory_for_the_views_is_reported(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError

    model, _ = load_checkpoint(trained / "run/best.safetensors")
    monkeypatch.setattr(model, "forward", full)
    dataset = build_datasets(load_settings(TrainSettings, trained / "recipe.yaml").data).val
    with pytest.raises(UserError, match="up to 4 views of an image of 48 x 48 pixels; give a smaller --tta-batch"):
        evaluate_model(model, dataset, 2, tta=TTA("flips"))


def _resave(trained: Path, path: Path, **changes: Any) -> Path:
    model, card = load_checkpoint(trained / "run/best.safetensors")
    save_checkpoint(path, model, dataclasses.replace(card, **changes))
    return path


def test_checkpoints_of_other_models_are_refused(trained: Path, tmp_path: Path) -> None:
    names = _resave(trained, tmp_path / "names.safetensors", classes=["dark", "light"])
    with pytest.raises(UserError, match=r"names\.safetensors.*class 1 is 'light'.*'bright'"):
        score(trained, tmp_path, checkpoint=names)
    bands = _resave(trained, tmp_path / "bands.safetensors", bands=[3, 2, 1])
    with pytest.raises(UserError, match=r"bands\.safetensors.*\[3, 2, 1\].*\[1, 2, 3\]"):
        score(trained, tmp_path, checkpoint=bands)
    with pytest.raises(UserError, match=r"of 2 classes \(dark, bright\), but recipe declares 3"):
        score(trained, tmp_path, "data.classes=[{name: a}, {name: b}, {name: c}]")


def test_a_model_for_other_images_is_refused(trained: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "grey", bands=1)
    with pytest.raises(UserError, match=r"model for bands \[1, 2, 3\].*reads bands \[1\]"):
        score(trained, tmp_path, f"data.root={tmp_path / 'grey'}")


def test_missing_truncated_and_foreign_checkpoints_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.safetensors"):
        score(trained, tmp_path, checkpoint=tmp_path / "none.safetensors")
    half = tmp_path / "half.safetensors"
    half.write_bytes((trained / "run/best.safetensors").read_bytes()[:5000])
    for path in (half, trained / "run/last.ckpt"):
        with pytest.raises(UserError, match=path.name):
            score(trained, tmp_path, checkpoint=path)


def test_an_empty_split_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="split 'test' has no images"):
        score(trained, tmp_path, split="test")


def test_a_folder_that_cannot_be_written_is_refused(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot write into this folder"):
        score(trained, tmp_path / "file")


def test_devices_that_are_not_there_are_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def settings(*overrides: str) -> TrainSettings:
        return load_settings(TrainSettings, trained / "recipe.yaml", overrides)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(settings("device=auto")) == "cpu"
    with pytest.raises(UserError, match="no CUDA GPU"):
        pick_device(settings("device=cuda"))
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        pick_device(settings("device=auto", "precision=fp16"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device(settings("device=auto", "precision=fp16")) == "cuda"
    assert pick_device(settings("device=cpu")) == "cpu"


def test_tables_json_and_picture_cope_with_classes_never_seen(tmp_path: Path) -> None:
    scores = scores_from_matrix([[3, 1, 0], [0, 4, 0], [0, 0, 0]], exclude=[1])
    names = [*CLASSES, "absent"]
    content = scores_to_json(scores, names)
    assert content["classes"]["absent"]["iou"] is None and content["excluded_from_means"] == ["bright"]
    assert content["mean_iou"] == scores.iou[0] and not math.isnan(content["mean_iou"])
    console = Console(record=True, width=100, quiet=False, file=(tmp_path / "out.txt").open("w"))
    console.print(score_table(scores, names, "scores"), matrix_table(scores, names))
    text = console.export_text()
    assert "75.0" in text and "not in means" in text and "absent" in text
    save_matrix_picture(tmp_path / "matrix.png", scores, names, "title")
    assert {path.name for path in tmp_path.iterdir()} == {"out.txt", "matrix.png"}
