"""The pages that real runs and evaluations leave."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_recipe import write_recipe

from d2ls_fast.config import load_settings
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.fit import fit
from d2ls_fast.training.score import score_checkpoint

QUIET = Console(quiet=True)


def alts(page: Path) -> list[str]:
    """What the pictures of a page are said to show."""
    return re.findall(r'<img [^>]*alt="([^"]*)"', page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a recipe and its finished run, and the run's report."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, fit(load_settings(TrainSettings, write_recipe(folder)), console=QUIET)


def test_the_page_of_a_run_tells_what_the_report_does(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, report = trained
    page = folder / "run/report.html"
    text = page.read_text(encoding="utf-8")
    assert f"<b>{100 * report['best']['mean_iou']:.1f}" in text
    for part in ("tiny", "protocol honest", f"{report['parameters']:,}", "backbone: mobilenetv3_small_050", "torch "):
        assert part in text, part
    shown = alts(page)
    assert [alt.split(":")[0].split(" (")[0] for alt in shown[1:4]] == [
        "training loss",
        "validation score",
        "learning rate",
    ]
    names = {alt.partition(" of ")[2] for alt in shown[4:]}  # twelve pictures of three tiles
    assert len(shown) == 4 + 12 and len(names) == 3 and all(name.startswith("images/") for name in names)


def test_the_page_of_an_evaluation_shows_its_own_tiles(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, report = trained
    settings = load_settings(TrainSettings, folder / "recipe.yaml", ["gallery=1"])
    score_checkpoint(settings, folder / "run/best.safetensors", "val", tmp_path, "recipe.yaml", QUIET)
    text = (tmp_path / "val.html").read_text(encoding="utf-8")
    assert f"<b>{100 * report['best']['mean_iou']:.1f}" in text and "best.safetensors" in text
    run_tiles, own_tiles = alts(folder / "run/report.html")[4:], alts(tmp_path / "val.html")[1:]
    assert len(own_tiles) == 8 and own_tiles[:4] == run_tiles[:4]  # the worst of all comes first


def test_without_a_gallery_or_validation_images_there_is_still_a_page(tmp_path: Path) -> None:
    data = {"root": str(tmp_path / "data"), "train": ["images/*"], "classes": [{"name": "a"}, {"name": "b"}]}
    recipe = write_recipe(tmp_path, data=data, steps=1, evaluate_every=1)
    fit(load_settings(TrainSettings, recipe), console=QUIET)
    shown = alts(tmp_path / "run/report.html")
    assert [alt.split(" (")[0] for alt in shown] == ["training loss", "learning rate"]
    assert "without validation images" in (tmp_path / "run/report.html").read_text()
    fit(load_settings(TrainSettings, write_recipe(tmp_path, steps=1), ["gallery=0"]), overwrite=True, console=QUIET)
    assert len(alts(tmp_path / "run/report.html")) == 4
