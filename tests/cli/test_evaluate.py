"""``d2ls-fast evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from tiny_recipe import write_images, write_recipe
from typer.testing import CliRunner

from d2ls_fast.cli.main import app
from d2ls_fast.inference.tta import PRESETS, Merge


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


def test_augmented_scores_stand_beside_the_plain_ones(trained: Path, tmp_path: Path) -> None:
    assert run(trained, "--output", tmp_path)[0] == 0
    plain = json.loads((tmp_path / "val.json").read_text())
    status, shown, message = run(
        trained, "--output", tmp_path, "--tta", "flips-scales-8", "--tta-merge", "probabilities", "--tta-batch", 2
    )
    assert status == 0, message
    used = "scores here are with test-time augmentation flips-scales-8 (8 passes, mean of probabilities)"
    assert used in shown and "without test-time augmentation" not in shown
    result = json.loads((tmp_path / "val-flips-scales-8.json").read_text())
    assert result["tta"] == {"preset": "flips-scales-8", "merge": "probabilities", "passes": 8}
    assert used in result["protocol"] and result["matrix"] != plain["matrix"]
    assert sum(map(sum, result["matrix"])) == sum(map(sum, plain["matrix"]))
    assert plain["tta"]["passes"] == 1 and "scores here are without test-time augmentation" in plain["protocol"]
    assert json.loads((tmp_path / "val.json").read_text()) == plain
    assert used in (tmp_path / "val-flips-scales-8.html").read_text()


def test_an_unknown_augmentation_is_refused(trained: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "out")
    assert "tta 'flips-scales': no such preset; did you mean" in refused(trained, *output, "--tta", "flips-scales")
    assert "did you mean flips-rot90-scales" in refused(trained, *output, "--tta", "flip-rot90-scales")
    assert "take logits or probabilities" in refused(trained, *output, "--tta", "flips", "--tta-merge", "mean")
    assert "tta batch 0" in refused(trained, *output, "--tta", "flips", "--tta-batch", 0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_help_names_every_augmentation(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
    assert f"--tta {'|'.join(PRESETS)}" in shown and f"--tta-merge {'|'.join(get_args(Merge))}" in shown
