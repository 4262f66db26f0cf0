"""``d2ls-fast submit``: from a checkpoint, or maps made before, to an archive that passes the contest's check."""

from __future__ import annotations

import io
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image
from published_trees import write_tree
from submission_files import right_files, zipped
from typer.testing import CliRunner, Result

from d2ls_fast.cli.main import app
from d2ls_fast.data.palettes import PALETTES
from d2ls_fast.data.raster import read_image
from d2ls_fast.inference.predictor import Predictor
from d2ls_fast.models.checkpoint import ModelCard, save_checkpoint
from d2ls_fast.models.model import create_model


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small models with random weights: ``loveda`` and ``uavid``."""
    folder, paths = tmp_path_factory.mktemp("models"), {}
    for name in ("loveda", "uavid"):
        torch.manual_seed(0)
        palette = PALETTES[name]
        model = create_model(
            "mobilenetv3_small_050", num_classes=len(palette.classes), in_chans=3, stages=1, embed_dim=32, num_heads=2
        )
        card = ModelCard(
            model=model.config,
            classes=list(palette.classes),
            palette=[list(colour) for colour in palette.colours],
            bands=[1, 2, 3],
            mean=[127.0] * 3,
            std=[30.0] * 3,
        )
        paths[name] = folder / f"{name}.safetensors"
        save_checkpoint(paths[name], model, card)
    return paths


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write_tree(name, tmp_path_factory.mktemp(name)) for name in ("loveda", "uavid")}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["submit", *map(str, arguments)])


def refused(*arguments: object) -> str:
    """The error line of a run that must fail."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0].removeprefix("error: ")


def test_loveda_from_a_checkpoint(checkpoints: dict[str, Path], trees: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "new" / "loveda.zip"
    result = run("loveda", "--checkpoint", checkpoints["loveda"], "--images", trees["loveda"], "--output", output)
    assert result.exit_code == 0, result.output
    assert [path.name for path in output.parent.iterdir()] == ["loveda.zip"]
    predictor = Predictor(checkpoints["loveda"], window=1024)
    with ZipFile(output) as archive:
        assert archive.namelist() == ["6.png", "7.png"]
        for name, area in (("6.png", "Urban"), ("7.png", "Rural")):
            labels = np.asarray(Image.open(io.BytesIO(archive.read(name))))
            image, _, _ = read_image(trees["loveda"] / "Test" / area / "images_png" / name)
            np.testing.assert_array_equal(labels, predictor.predict(image))
    for expected in ("agricultural", "%", f"wrote {output}: 2 label maps", "2 test images were found, LoveDA has 1796"):
        assert expected in result.stdout


def test_options_reach_the_predictor(
    checkpoints: dict[str, Path], trees: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Predictor] = []
    real = Predictor.__init__

    def spy(self: Predictor, *arguments: object, **options: object) -> None:
        real(self, *arguments, **options)  # type: ignore[arg-type]
        made.append(self)

    monkeypatch.setattr(Predictor, "__init__", spy)
    result = run(
        *("uavid", "--checkpoint", checkpoints["uavid"], "--images", trees["uavid"] / "uavid_test"),
        *("--output", tmp_path / "uavid.zip", "--window", 32, "--overlap", 8, "--batch", 3, "--precision", "bf16"),
        *("--tta", "flips", "--tta-merge", "probabilities", "--device", "cpu"),
    )
    assert result.exit_code == 0, result.output
    (predictor,) = made
    assert (predictor.window, predictor.overlap, predictor.batch) == (32, 8, 3)
    assert (predictor.dtype, predictor.tta.name, predictor.tta.merge) == (torch.bfloat16, "flips", "probabilities")
    with ZipFile(tmp_path / "uavid.zip") as archive:
        assert archive.namelist() == ["seq21/Labels/000000.png", "seq21/Labels/000100.png"]


def test_maps_by_predict_become_the_archive_that_a_checkpoint_makes(
    checkpoints: dict[str, Path], trees: dict[str, Path], tmp_path: Path
) -> None:
    options = ("--checkpoint", checkpoints["uavid"], "--window", 1024, "--overlap", 128)
    images, maps = trees["uavid"] / "uavid_test/seq21/Images", tmp_path / "maps" / "seq21"
    result = CliRunner().invoke(app, ["predict", str(images), "--output", str(maps), *map(str, options)])
    assert result.exit_code == 0, result.output
    archives = [tmp_path / "maps.zip", tmp_path / "model.zip"]
    for source, output in ((("--from-maps", tmp_path / "maps"), archives[0]), (options, archives[1])):
        result = run("uavid", *source, "--images", trees["uavid"], "--output", output)
        assert result.exit_code == 0, result.output
    assert archives[0].read_bytes() == archives[1].read_bytes()


@pytest.mark.parametrize("name", ["loveda", "uavid"])
def test_check_alone(name: str, trees: dict[str, Path], tmp_path: Path) -> None:
    files = right_files(name)
    archive = zipped(tmp_path / "right.zip", files)
    result = run("check", name, archive, "--images", trees[name])
    assert result.exit_code == 0, result.output
    assert f"checked {archive}: 2 label maps" in result.stdout and "no fault found" in result.stdout
    result = run("check", name, archive, "--images", trees[name], "--picture", tmp_path / "new" / "sheet.png")
    assert result.exit_code == 0, result.output
    shown = {tuple(colour) for colour in np.asarray(Image.open(tmp_path / "new" / "sheet.png")).reshape(-1, 3)}
    assert set(PALETTES[name].colours) <= shown
    sheet = ("--picture", tmp_path / "sheet.jpg")
    assert "sheet.jpg: not the name of a PNG file" in refused("check", name, archive, "--images", trees[name], *sheet)
    files.popitem()
    wrong = zipped(tmp_path / "wrong.zip", files)
    assert refused("check", name, wrong, "--images", trees[name]).startswith(f"{wrong}: no map of test image")
    assert "none.zip: no such archive" in refused("check", name, tmp_path / "none.zip", "--images", trees[name])


def test_what_is_wrong_is_said_before_anything_is_written(
    checkpoints: dict[str, Path], trees: dict[str, Path], tmp_path: Path
) -> None:
    output = ("--output", tmp_path / "archive.zip")
    model, images = ("--checkpoint", checkpoints["loveda"]), ("--images", trees["loveda"])
    other = ("--checkpoint", checkpoints["uavid"])
    assert "uavid.safetensors: its classes are building, road" in refused("loveda", *other, *images, *output)
    assert "no test images of UAVid here" in refused("uavid", *other, *images, *output)
    assert "give either --checkpoint" in refused("loveda", *images, *output)
    assert "give either --checkpoint" in refused("loveda", *model, "--from-maps", tmp_path, *images, *output)
    assert "no map of test image 6 (2 of 2" in refused("loveda", "--from-maps", tmp_path, *images, *output)
    assert "--tta-merge: changes nothing in maps" in refused(
        "loveda", "--from-maps", tmp_path, *images, *output, "--tta-merge", "logits"
    )
    assert "archive.tar: not the name of a zip file" in refused(
        "loveda", *model, *images, "--output", tmp_path / "archive.tar"
    )
    assert "tta 'flip': no such preset" in refused("loveda", *model, *images, *output, "--tta", "flip")
    (tmp_path / "file").touch()
    assert "file: cannot write into this folder" in refused(
        "loveda", *model, *images, "--output", tmp_path / "file" / "archive.zip"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_test_image_that_cannot_be_mapped_is_named_before_the_first_is(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    root = write_tree("loveda", tmp_path / "data")
    grey = root / "Test/Rural/images_png/7.png"
    Image.fromarray(np.zeros((40, 64), np.uint8)).save(grey)
    command = ("loveda", "--checkpoint", checkpoints["loveda"], "--images", root, "--output", tmp_path / "a.zip")
    assert f"{grey}: has 1 band" in refused(*command)
    grey.write_text("no picture")
    assert f"{grey}: not a readable" in refused(*command)
    assert not (tmp_path / "a.zip").exists()
