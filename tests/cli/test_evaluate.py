"""``d2ls-fast evaluate``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_recipe import write_images, write_recipe
from typer.testing import CliRunner

from d2ls_fast.cli.main import app


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and its finished run."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = write_recipe(folder, steps=1)
    assert CliRunner().invoke(app, ["train", str(recipe)]).exit_code == 0
    return folder


def run(trained: Path, *arguments: object, checkpoint: Path | None = None) -> tuple[int, str, str]:
    """Exit status, output and error output of ``d2ls-fast evaluate recipe --checkpoint ...``."""
    checkpoint = checkpoint or trained / "run/best.safetensors"
    call = ["evaluate", trained / "recipe.yaml", "--checkpoint", checkpoint, *arguments]
    result = CliRunner().invoke(app, list(map(str, call)))
    return result.exit_code, result.stdout, result.stderr


def refused(*arguments: object, checkpoint: Path | None = None) -> str:
    """The one line in which a wrong call ends."""
    status, _, message = run(*arguments, checkpoint=checkpoint)  # type: ignore[arg-type]
    assert status == 2, message
    assert message.startswith("error: ") and message.count("\n") == 1, message
    return message


def test_tables_json_and_picture(trained: Path) -> None:
    status, shown, message = run(trained)
    assert status == 0, message
    for word in ("IoU", "F1", "precision", "recall", "overall accuracy", "confusion matrix", "dark", "bright"):
        assert word in shown
    folder = trained / "run/evaluation"
    assert json.loads((folder / "val.json").read_text())["items"] == 3
    assert (folder / "val.png").is_file()


def test_output_and_overrides(trained: Path, tmp_path: Path) -> None:
    status, _, message = run(trained, "--output", tmp_path / "out", "data.split.test=0.25", "--split", "test")
    assert status == 0, message
    assert json.loads((tmp_path / "out/test.json").read_text())["split"] == "test"


def test_wrong_calls_end_in_one_line(trained: Path, tmp_path: Path) -> None:
    assert "nothing.safetensors" in refused(trained, checkpoint=tmp_path / "nothing.safetensors")
    assert "last.ckpt" in refused(trained, checkpoint=trained / "run/last.ckpt")
    assert "no images" in refused(trained, "--split", "test")
    assert "did you mean" in refused(trained, "batchsize=2")
    assert "of 2 classes" in refused(trained, "data.classes=[{name: a}, {name: b}, {name: c}]")
    assert "nowhere" in refused(trained, "data.root=nowhere")
    write_images(tmp_path / "grey", bands=1)
    assert "reads bands [1]" in refused(trained, f"data.root={tmp_path / 'grey'}")
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(trained, "--output", tmp_path / "file")


def test_an_unknown_split_is_wrong_usage(trained: Path) -> None:
    assert run(trained, "--split", "everything")[0] == 2
