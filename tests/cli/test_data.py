"""``d2ls-fast data``."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_recipe import write_recipe
from typer.testing import CliRunner

from d2ls_fast.cli.main import app
from d2ls_fast.config import load_settings
from d2ls_fast.data import build_datasets
from d2ls_fast.training.config import TrainSettings


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit status, output and error output of ``d2ls-fast ...``."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result.exit_code, result.stdout, result.stderr


def test_tiles_are_written_with_a_recipe_that_trains(tmp_path: Path) -> None:
    output = tmp_path / "tiles"
    status, shown, message = run("data", "tile", write_recipe(tmp_path), "--output", output, "--size", 32)
    assert status == 0, message
    assert "39 tiles" in shown and "recipe.yaml" in shown.replace("\n", "")  # 9 x 4 to train, 3 whole to validate
    assert not [path for path in tmp_path.rglob("*.part*")]
    settings = load_settings(TrainSettings, output / "recipe.yaml")
    splits = build_datasets(settings.data, settings.augment)
    assert (settings.steps, len(splits.train.pairs), len(splits.val)) == (6, 36, 3) and splits.mean == [127.0] * 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--output", "{}/data"], "is there already"),
        (["--output", "{}/tiles", "--size", "64", "--overlap", "64"], "--overlap 64"),
        (["--output", "{}/tiles", "data.root=nowhere"], "nowhere"),
        (["--output", "{}/recipe.yaml/tiles"], "cannot write"),
    ],
)
def test_wrong_calls_end_in_one_line_and_leave_nothing(tmp_path: Path, arguments: list[str], named: str) -> None:
    recipe = write_recipe(tmp_path)
    before = set(tmp_path.rglob("*"))
    status, _, message = run("data", "tile", recipe, *(text.format(tmp_path) for text in arguments))
    assert status == 2 and message.startswith("error: ") and message.count("\n") == 1 and named in message
    assert set(tmp_path.rglob("*")) == before


def test_a_fault_met_half_way_leaves_nothing(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    mask = tmp_path / "data/masks/11.png"
    mask.write_bytes(mask.read_bytes()[:-40])
    before = set(tmp_path.rglob("*"))
    status, _, message = run("data", "tile", recipe, "--output", tmp_path / "tiles")
    assert status == 2 and "11.png" in message and set(tmp_path.rglob("*")) == before
