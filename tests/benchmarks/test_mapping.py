"""The mapping benchmark measures what it says, on a scene and a model small enough for a test."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from typer.testing import CliRunner

from d2ls_fast.benchmarks import mapping
from d2ls_fast.cli.main import app
from d2ls_fast.errors import UserError
from d2ls_fast.models.checkpoint import ModelCard, save_checkpoint
from d2ls_fast.models.model import create_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_model("mobilenetv3_small_050", 3, embed_dim=32, num_heads=2, stages=1)
    colours = [[0, 0, 80 * i] for i in range(3)]
    card = ModelCard(model.config, list("abc"), colours, [1, 2, 3], [127.0] * 3, [60.0] * 3, crop=64)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_checkpoint(path, model, card)
    return path


def test_a_synthetic_scene_repeats_nothing(tmp_path: Path) -> None:
    mapping.write_synthetic_scene(tmp_path / "s.tif", 1100)
    with rasterio.open(tmp_path / "s.tif") as scene:
        assert (scene.count, scene.shape, scene.dtypes[0]) == (3, (1100, 1100), "uint8")
        tiles = [scene.read(1, window=window) for _, window in scene.block_windows(1)]
    assert not any(np.array_equal(one, other) for one, other in itertools.pairwise(tiles))


def test_all_is_measured_and_written(checkpoint: Path, tmp_path: Path) -> None:
    mapping.write_synthetic_scene(tmp_path / "s.tif", 300)
    files = [str(checkpoint), str(tmp_path / "s.tif")]
    options = ["--size", "400", "--repeats", "3", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["bench", "map", *files, *options])
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["busy"]["windows"] == 81
    assert content["busy"]["map_seconds"] > 0
    assert 1 < content["tta"]["ratio"] < 40
    assert [each["side"] for each in content["memory"]] == [400]
    assert content["memory"][0]["peak_mb"] > 100
    assert [each["blend"] for each in content["seams"]] == ["cosine", "gaussian", "none"]
    assert all(0 <= each["changed_percent"] <= 100 and each["pixels"] > 1000 for each in content["seams"])
    assert "| 400 |" in " ".join((tmp_path / "out.md").read_text().split())


def test_a_scene_too_small_to_shift_windows_in_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    mapping.write_synthetic_scene(tmp_path / "s.tif", 100)
    with pytest.raises(UserError, match=r"s\.tif: too small to shift windows of 64"):
        mapping.measure_seams(checkpoint, tmp_path / "s.tif", lambda: None)
    result = CliRunner().invoke(app, ["bench", "map", str(checkpoint)])
    assert result.exit_code == 2
    assert "takes a checkpoint and a scene" in result.stderr
