"""``d2ls-fast train``."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tiny_recipe import write_images, write_recipe
from typer.testing import CliRunner

from d2ls_fast.cli.main import app


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit status, output and error output of ``d2ls-fast train ...``."""
    result = CliRunner().invoke(app, ["train", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def refused(*arguments: object) -> str:
    """The one line in which a wrong call ends."""
    status, _, message = run(*arguments)
    assert status == 2, message
    assert message.startswith("error: ") and message.count("\n") == 1, message
    return message


def test_a_run_and_its_continuation(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    status, shown, message = run(recipe, "steps=2", "evaluate_every=2")
    assert status == 0, message
    assert "step 2/2" in shown and "mean" in shown and "overall accuracy" in shown and "images/s" in shown
    assert (tmp_path / "run/best.safetensors").is_file()
    assert "--overwrite" in refused(recipe, "steps=3")
    status, shown, message = run(recipe, "steps=3", "evaluate_every=3", "--resume")
    assert status == 0 and "step 3/3" in shown, message
    assert run(recipe, "steps=1", "evaluate_every=1", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["optimizer.leraning_rate=1"], "optimizer.leraning_rate"),
        (["batchsize=2"], "did you mean 'batch_size'"),
        (["steps=many"], "'steps'"),
        (["data.root=nowhere"], "nowhere"),
        (["model.backbone=resnet19"], "resnet19"),
        (["no-equals-sign"], "expected key=value"),
        (["--resume"], "no run to resume"),
        (["--resume", "--overwrite"], "one of the two"),
    ],
)
def test_wrong_settings_end_in_one_line(tmp_path: Path, arguments: list[str], named: str) -> None:
    assert named in refused(write_recipe(tmp_path), *arguments)
    run_folder = tmp_path / "run"
    assert not run_folder.exists() or not any(run_folder.iterdir())


def test_missing_and_broken_recipes_end_in_one_line(tmp_path: Path) -> None:
    assert "missing.yaml: no such file" in refused(tmp_path / "missing.yaml")
    (tmp_path / "broken.yaml").write_text("steps: [1")
    assert "broken.yaml: not valid YAML" in refused(tmp_path / "broken.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert "empty.yaml: key 'model' is required" in refused(tmp_path / "empty.yaml")


def test_an_output_folder_that_cannot_be_written_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file/run: cannot write" in refused(write_recipe(tmp_path), f"output={tmp_path / 'file/run'}")


def test_bad_data_ends_in_one_line(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    images, masks = tmp_path / "data/images", tmp_path / "data/masks"
    (images / "00.png").write_text("this is text")
    assert "00.png" in refused(recipe)
    Image.new("RGB", (48, 48)).save(images / "00.png")
    (masks / "01.png").rename(masks / "elsewhere.png")
    assert "01.png: has no mask" in refused(recipe)
    (masks / "elsewhere.png").rename(masks / "01.png")
    Image.new("L", (48, 48)).save(masks / "lost.png")
    assert "lost.png: mask without an image" in refused(recipe)
    (masks / "lost.png").unlink()
    for mask in masks.iterdir():
        Image.new("L", (48, 48), 7).save(mask)
    assert "7" in refused(recipe)
    assert not (tmp_path / "run/report.json").exists()


def test_empty_folders_and_wrong_band_counts_end_in_one_line(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    (tmp_path / "empty/images").mkdir(parents=True)
    assert str(tmp_path / "empty") in refused(recipe, f"data.root={tmp_path / 'empty'}")
    write_images(tmp_path / "grey", bands=1)
    assert "band" in refused(recipe, f"data.root={tmp_path / 'grey'}", "data.bands=[1,2,3]")


def test_several_processes_are_started_with_the_same_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def launch(processes: int, arguments: list[str]) -> int:
        started.append((processes, arguments))
        return 3

    monkeypatch.setattr("d2ls_fast.training.launch.launch", launch)
    recipe = write_recipe(tmp_path)
    assert run(recipe, "devices=2", "steps=1", "--resume")[0] == 3  # the status of the process that failed
    assert run(recipe, "devices=2", "--resume-previous")[0] == 3
    assert started == [
        (2, ["train", str(recipe), "devices=2", "steps=1", "--resume"]),
        (2, ["train", str(recipe), "devices=2", "--resume-previous"]),
    ]
    assert "did you mean 'devices'" in refused(recipe, "device_s=2")  # said once, before anything is started
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    assert "torchrun started 1 processes" in refused(recipe, "devices=2") and len(started) == 2
