"""What a recipe's protocol is said to be."""

from __future__ import annotations

from pathlib import Path

import pytest
from published_trees import write_tree

from d2ls_fast.config import load_settings
from d2ls_fast.data import build_datasets
from d2ls_fast.errors import UserError
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.protocol import describe

CONFIGS = Path(__file__).parents[2] / "configs"


def said(name: str, protocol: str, root: Path, *overrides: str) -> str:
    settings = load_settings(TrainSettings, CONFIGS / name / f"{protocol}.yaml", [f"data.root={root}", *overrides])
    return "\n".join(describe(settings, build_datasets(settings.data, settings.augment)))


def test_loveda(tmp_path: Path) -> None:
    root = write_tree("loveda", tmp_path)
    paper, honest = said("loveda", "paper", root), said("loveda", "honest", root)
    assert "protocol paper: train = LoveDA train+val (6 images), val = LoveDA val (2 images)" in paper
    assert "val lies inside the training images" in paper and "compare with the published mean IoU 55.3" in paper
    assert "scores here are without test-time augmentation" in paper and "published with 4191 images" in paper
    assert "not with the published mean IoU 55.3" in honest and "inside the training" not in honest
    assert "labels of LoveDA's test images are not public" in honest


def test_potsdam(tmp_path: Path) -> None:
    root = write_tree("potsdam", tmp_path)
    paper = said("potsdam", "paper", root, "data.geoseg_compat=true")
    assert "val = ISPRS Potsdam test (14 images)" in paper and "val and test are the same images" in paper
    assert "padding of every tile trains and scores as class 0" in paper and "mean F1 94.7" in paper
    honest = said("potsdam", "honest", root)
    assert "same images" not in honest and "padding" not in honest


def test_isaid_has_no_figure_of_the_authors(tmp_path: Path) -> None:
    assert "published no score on iSAID" in said("isaid", "paper", write_tree("isaid", tmp_path))


def test_a_folder_has_the_splits_that_its_recipe_lists() -> None:
    folder = CONFIGS / "demo.yaml"
    root = f"data.root={CONFIGS.parent / 'examples/sample/landsat8-cloud'}"
    for protocol, what in (("honest", "best model chosen on val"), ("paper", "val may lie inside the training images")):
        settings = load_settings(TrainSettings, folder, [root, f"protocol={protocol}"])
        lines = describe(settings, build_datasets(settings.data))
        assert lines[0].startswith(f"protocol {protocol}") and what in lines[0]
    with pytest.raises(UserError, match=r"unknown key 'data\.protocol'; did you mean 'protocol'"):
        load_settings(TrainSettings, folder, ["data.protocol=honest"])


def test_settings_read_back_under_their_protocol(tmp_path: Path) -> None:
    path = CONFIGS / "potsdam" / "paper.yaml"
    settings = load_settings(TrainSettings, path, [f"data.root={write_tree('potsdam', tmp_path)}"])
    again = TrainSettings.model_validate(settings.model_dump(mode="json"))
    assert again == settings and again.data.protocol == "paper"
