"""Every recipe in configs/ loads, and builds its data sets from a tree in the published layout."""

from __future__ import annotations

from pathlib import Path

import pytest
from published_trees import write_tree

from d2ls_fast.config import load_settings
from d2ls_fast.data import build_datasets
from d2ls_fast.data.published import PUBLISHED
from d2ls_fast.training.config import TrainSettings

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(CONFIGS.rglob("*.yaml"))
# epochs, batch, learning rate, stages, crop of the paper's recipes
PAPER = {
    "loveda": (30, 8, 8e-5, 3, 512),
    "uavid": (45, 4, 1e-4, 3, 1024),
    "potsdam": (45, 4, 1e-4, 3, 768),
    "vaihingen": (45, 4, 5e-5, 2, 512),
    "cloud": (100, 4, 1e-4, 3, 512),
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write_tree(name, tmp_path_factory.mktemp(name)) for name in PUBLISHED}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_the_recipe_is_valid(path):
    settings = load_settings(TrainSettings, path, ["data.root=somewhere"])
    assert settings.protocol in ("honest", "paper")


@pytest.mark.parametrize("protocol", ["honest", "paper"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipe_builds_its_data_sets(name, protocol, trees):
    path = CONFIGS / name / f"{protocol}.yaml"
    settings = load_settings(TrainSettings, path, [f"data.root={trees[name]}", "augment.crop=32"])
    assert settings.data.dataset == name and settings.data.protocol == settings.protocol == protocol
    assert settings.loss.compat == ("release" if protocol == "paper" else "corrected")
    data = build_datasets(settings.data, settings.augment)
    assert data.train[0]["image"].shape == (3, 32, 32)
    assert len(data.val) >= 1 and set(data.val[0]["label"].unique().tolist()) <= {*range(len(data.classes)), 255}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_recipes_have_its_values(name):
    settings = load_settings(TrainSettings, CONFIGS / name / "paper.yaml", ["data.root=somewhere"])
    epochs, batch, lr, stages, crop = PAPER[name]
    assert (settings.epochs, settings.batch_size, settings.model.stages) == (epochs, batch, stages)
    assert settings.optimizer.lr == lr and settings.augment.crop == crop
    assert settings.optimizer.lr * settings.schedule.final == pytest.approx(1e-6)
    assert settings.optimizer.weight_decay == 0.01 and settings.optimizer.lookahead is not None
    assert (settings.optimizer.lookahead.steps, settings.optimizer.lookahead.alpha) == (5, 0.5)
    assert settings.seed == 42 and settings.precision == "32"
