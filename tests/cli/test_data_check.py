"""``d2ls-fast data check``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny_recipe import write_recipe
from typer.testing import CliRunner

from d2ls_fast.cli.main import app


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit status, output and error output of ``d2ls-fast data check ...``."""
    result = CliRunner().invoke(app, ["data", "check", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


def test_a_sound_data_set(recipe: Path, tmp_path: Path) -> None:
    status, shown, message = run(recipe, "--output", tmp_path / "check")
    assert status == 0, message
    for word in ("train", "val", "dark", "bright", "deviation", "no fault found"):
        assert word in shown
    assert {path.name for path in (tmp_path / "check").iterdir()} == {"check.json", "contact_sheet.png"}
    content = json.loads((tmp_path / "check/check.json").read_text())
    assert content["splits"]["train"]["images"] == 9 and content["faults"] == []


def test_faults_are_listed_and_end_in_one_line_and_status_two(recipe: Path, tmp_path: Path) -> None:
    masks = tmp_path / "data/masks"
    (masks / "03.png").unlink()
    Image.new("L", (48, 48), 7).save(masks / "05.png")
    status, shown, message = run(recipe, "--output", tmp_path / "check")
    assert status == 2 and message.startswith("error: ") and message.count("\n") == 1
    assert "2 fault(s)" in message and "03.png: has no mask" in shown and shown.count("fault: ") == 2
    content = json.loads((tmp_path / "check/check.json").read_text())
    assert len(content["faults"]) == 2 and content["unknown_labels"] == {"7": {"pixels": 2304, "files": 1}}
    assert run(recipe)[0] == 2


def test_wrong_calls_end_in_one_line_and_write_nothing(recipe: Path, tmp_path: Path) -> None:
    for arguments, named in (
        ([tmp_path / "missing.yaml"], "missing.yaml: no such file"),
        ([recipe, "data.root=nowhere", "--output", tmp_path / "check"], "nowhere"),
        ([recipe, "data.clases=1"], "did you mean 'data.classes'"),
    ):
        status, _, message = run(*arguments)
        assert status == 2 and named in message and message.count("\n") == 1, message
    assert not list((tmp_path / "check").iterdir())
    (tmp_path / "file").write_text("")
    assert "cannot write" in run(recipe, "--output", tmp_path / "file")[2]
