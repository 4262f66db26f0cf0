"""``d2ls-fast predict``: maps appear, and every bad input is one line, status 2 and nothing half-written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from d2ls_fast.cli.main import app
from d2ls_fast.models.checkpoint import ModelCard, save_checkpoint
from d2ls_fast.models.model import create_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights, three bands and three classes."""
    torch.manual_seed(0)
    model = create_model("mobilenetv3_small_050", num_classes=3, in_chans=3, stages=1, embed_dim=32, num_heads=2)
    card = ModelCard(
        model=model.config,
        classes=["water", "field", "town"],
        palette=[[0, 0, 255], [0, 160, 0], [255, 0, 0]],
        bands=[1, 2, 3],
        mean=[127.0] * 3,
        std=[128.0] * 3,
        scale=0.5,
    )
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_checkpoint(path, model, card)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with a GeoTIFF and a JPEG."""
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (3, 150, 100), dtype=np.uint8)
    place = {"crs": "EPSG:32616", "transform": from_origin(500_000, 4_000_000, 10, 10)}
    with rasterio.open(
        folder / "scene.tif", "w", driver="GTiff", count=3, height=150, width=100, dtype="uint8", **place
    ) as target:
        target.write(pixels)
    Image.fromarray(np.moveaxis(pixels[:, :50], 0, -1)).save(folder / "photo.jpg")
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def refused(output: Path, *arguments: object) -> str:
    """The error line of a run that must fail and leave no file in ``output``."""
    result = run("--output", output, *arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert not output.is_dir() or list(output.iterdir()) == []
    return lines[0]


def test_a_folder_is_mapped(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "maps"
    result = run(
        "--checkpoint", checkpoint, images, "--output", output, "--window", 64, "--overlap", 16, "--confidence"
    )
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in output.iterdir()) == [
        "photo_confidence.png",
        "photo_labels.png",
        "photo_overlay.png",
        "scene_confidence.tif",
        "scene_labels.tif",
        "scene_labels.tif.aux.xml",
        "scene_overlay.png",
    ]
    with rasterio.open(output / "scene_labels.tif") as labels, rasterio.open(images / "scene.tif") as scene:
        assert (labels.crs, labels.transform, labels.shape) == (scene.crs, scene.transform, scene.shape)
        assert labels.read(1).max() < 3
    assert Image.open(output / "photo_labels.png").size == (100, 50)
    for expected in ("scene.tif", "photo.jpg", "150 x 100", "Mpixel/s", "town", str(output / "scene_labels.tif")):
        assert expected in result.stdout


def test_options_reach_the_predictor(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    result = run(
        *("--checkpoint", checkpoint, images / "*.tif", "--output", tmp_path / "maps", "--no-overlay"),
        *("--device", "cpu", "--precision", "bf16", "--batch", 2, "--nodata", 0),
    )
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {"scene_labels.tif", "scene_labels.tif.aux.xml"}


def test_augmentation_reaches_the_model(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    maps = {}
    for name, options in (("plain", ()), ("logits", ()), ("probabilities", ("--tta-merge", "probabilities"))):
        options = (*options, *(("--tta", "flips-rot90-scales") if name != "plain" else ()))
        result = run(
            "--checkpoint", checkpoint, images / "scene.tif", "--output", tmp_path / name, *options, "--confidence"
        )
        assert result.exit_code == 0, result.output
        with rasterio.open(tmp_path / name / "scene_confidence.tif") as confidence:
            maps[name] = confidence.read(1)
    differences = [
        np.abs(maps[name] - maps[other]).max() for name, other in (("plain", "logits"), ("logits", "probabilities"))
    ]
    assert min(differences) > 1e-6, differences


def test_an_unknown_augmentation_is_refused(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    line = refused(tmp_path / "maps", "--checkpoint", checkpoint, images, "--tta", "flip")
    assert "tta 'flip': no such preset; did you mean flips?" in line


def test_a_missing_input_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    line = refused(tmp_path / "maps", "--checkpoint", checkpoint, tmp_path / "none.tif")
    assert "none.tif: no such file or folder" in line


def test_a_folder_without_images_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty: no images in this folder" in refused(
        tmp_path / "maps", "--checkpoint", checkpoint, tmp_path / "empty"
    )


@pytest.mark.parametrize("name", ["text.png", "text.tif", "text.jp2", "text.txt"])
def test_a_text_file_is_refused_before_anything_is_written(
    name: str, checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("not an image\n" * 100)
    line = refused(tmp_path / "maps", "--checkpoint", checkpoint, images / "photo.jpg", tmp_path / name)
    assert f"{name}: not a readable" in line


def test_too_few_bands_are_refused_before_anything_is_written(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(images / "grey.png")
    line = refused(tmp_path / "maps", "--checkpoint", checkpoint, images)
    assert "grey.png: has 1 band, the checkpoint was trained on bands 1, 2, 3" in line


def test_an_output_that_is_a_file_is_refused(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "maps").write_text("mine")
    line = refused(tmp_path / "maps", "--checkpoint", checkpoint, images)
    assert "maps: cannot write into this folder" in line
    assert "--output" in line
    assert (tmp_path / "maps").read_text() == "mine"


def test_an_output_folder_without_permission_is_refused(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "maps"
    output.mkdir(mode=0o500)
    if os.access(output, os.W_OK):  # the superuser may write anywhere: let the system call say no
        real = Path.touch

        def touch(path: Path, *arguments: int, **options: bool) -> None:
            if path.parent == output:
                raise PermissionError(13, "Permission denied", str(path))
            real(path, *arguments, **options)

        monkeypatch.setattr(Path, "touch", touch)
    line = refused(output, "--checkpoint", checkpoint, images)
    assert "maps: cannot write into this folder (permission denied)" in line


def test_a_missing_checkpoint_is_refused(images: Path, tmp_path: Path) -> None:
    assert "no.safetensors: no such checkpoint" in refused(
        tmp_path / "maps", "--checkpoint", tmp_path / "no.safetensors", images
    )


def test_a_checkpoint_of_another_kind_is_refused(images: Path, tmp_path: Path) -> None:
    foreign, pickled = tmp_path / "foreign.safetensors", tmp_path / "pickled.ckpt"
    save_file({"weight": torch.zeros(3)}, foreign)
    torch.save({"state_dict": {}}, pickled)
    assert "foreign.safetensors: not a checkpoint of this package" in refused(
        tmp_path / "maps", "--checkpoint", foreign, images
    )
    assert "pickled.ckpt: not a readable checkpoint" in refused(tmp_path / "maps", "--checkpoint", pickled, images)


def test_a_scene_cut_short_leaves_the_finished_maps_only(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    whole = (images / "scene.tif").read_bytes()
    (images / "tail.tif").write_bytes(whole[:25_000])
    output = tmp_path / "maps"
    result = run("--checkpoint", checkpoint, images, "--output", output, "--window", 64, "--overlap", 16)
    assert result.exit_code == 2
    assert "tail.tif: damaged or cut short" in result.stderr
    assert sorted(path.name for path in output.iterdir()) == [
        "photo_labels.png",
        "photo_overlay.png",
        "scene_labels.tif",
        "scene_labels.tif.aux.xml",
        "scene_overlay.png",
    ]
    assert "wrote" in result.stdout


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--overlap", 512, "overlap 512 must be"),
        ("--window", 16, "window 16 must be"),
        ("--batch", 0, "batch 0 must be"),
    ],
)
def test_impossible_windows_are_refused(
    option: str, value: int, message: str, checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    assert message in refused(tmp_path / "maps", "--checkpoint", checkpoint, images, option, value)


def test_a_gpu_that_is_not_there_is_refused(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = refused(tmp_path / "maps", "--checkpoint", checkpoint, images, "--device", "cuda")
    assert "device cuda: PyTorch sees no GPU here; use cpu" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--graph", "--device", "cpu"], "compile 'graph': a CUDA graph needs a GPU, the device is cpu; take"),
        (["--graph", "--compile"], "--graph and --compile: a model is replayed or compiled; give one of them"),
    ],
)
def test_a_graph_that_cannot_be_is_refused(
    checkpoint: Path, images: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    assert message in refused(tmp_path / "maps", "--checkpoint", checkpoint, images, *options)


def test_an_unknown_option_is_refused(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    result = run("--checkpoint", checkpoint, images, "--output", tmp_path / "maps", "--windows", 64)
    assert result.exit_code == 2
    assert not (tmp_path / "maps").exists()


def test_a_scene_smaller_than_the_models_smallest_image_is_mapped(checkpoint: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((5, 9, 3), np.uint8)).save(tmp_path / "stamp.png")
    result = run("--checkpoint", checkpoint, tmp_path / "stamp.png", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "stamp_labels.png").size == (9, 5)


def test_one_dictionary_for_a_scene_reaches_the_predictor(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    maps = []
    for name in ("window", "scene"):
        options = ("--dictionary", name, "--window", 64, "--overlap", 32, "--confidence", "--no-overlay")
        result = run("--checkpoint", checkpoint, images / "scene.tif", "--output", tmp_path / name, *options)
        assert result.exit_code == 0, result.output
        with rasterio.open(tmp_path / name / "scene_confidence.tif") as confidence:
            maps.append(confidence.read(1))
    assert np.abs(maps[0] - maps[1]).max() > 1e-6


def test_one_dictionary_for_a_scene_is_refused_with_augmentation(
    checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    options = ("--dictionary", "scene", "--tta", "flips")
    line = refused(tmp_path / "maps", "--checkpoint", checkpoint, images, *options)
    assert "dictionary scene: not possible with tta flips" in line


def test_all_products_are_written(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "maps"
    result = run(
        *("--checkpoint", checkpoint, images / "scene.tif", "--output", output, "--blend", "gaussian", "--window", 64),
        *("--confidence", "--probabilities", "--polygons", "--smallest-area", 400, "--cog", "--overlap", 32),
    )
    assert result.exit_code == 0, result.output
    with (
        rasterio.open(output / "scene_probabilities.tif") as probabilities,
        rasterio.open(images / "scene.tif") as scene,
    ):
        assert probabilities.descriptions == ("water", "field", "town")
        assert (probabilities.crs, probabilities.transform, probabilities.shape) == (
            scene.crs,
            scene.transform,
            scene.shape,
        )
    with rasterio.open(output / "scene_labels.tif") as labels:
        assert labels.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    polygons = pyogrio.raw.read(output / "scene_polygons.gpkg", columns=["class"])
    assert len(polygons[2]) > 0


def test_keep_going_maps_the_rest_and_lists_the_failures(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    (images / "text.tif").write_text("not an image")
    content = (images / "scene.tif").read_bytes()
    (images / "cut.tif").write_bytes(content[: len(content) // 2])
    output = tmp_path / "maps"
    result = run("--checkpoint", checkpoint, images, "--output", output, "--keep-going", "--no-overlay")
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 3, lines
    assert "text.tif: not a readable" in lines[0]
    assert "cut.tif: " in lines[1]
    assert lines[2] == "error: 2 of 4 scenes could not be mapped; mend and map them again"
    assert {path.name for path in output.iterdir()} == {
        "photo_labels.png",
        "scene_labels.tif",
        "scene_labels.tif.aux.xml",
    }


def test_the_memory_budget_is_kept_or_refused(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    line = refused(tmp_path / "maps", "--checkpoint", checkpoint, images, "--max-memory", "10MB")
    assert "--max-memory 0.01GB: these scenes need at least" in line
    assert "not an amount of memory" in refused(
        tmp_path / "maps", "--checkpoint", checkpoint, images, "--max-memory", "lots"
    )
    result = run("--checkpoint", checkpoint, images, "--output", tmp_path / "maps", "--max-memory", "16GB")
    assert result.exit_code == 0, result.output
