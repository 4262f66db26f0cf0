"""``d2ls-fast export``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import d2ls_fast as d2
from d2ls_fast.cli.main import app


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = d2.create_model("mobilenetv3_small_050", 2, embed_dim=16, num_heads=2, stages=1)
    card = d2.ModelCard(model.config, ["dark", "bright"], [[0, 0, 0], [9, 9, 9]], [1, 2, 3], [100.0] * 3, [50.0] * 3)
    path = tmp_path_factory.mktemp("checkpoint") / "best.safetensors"
    d2.save_checkpoint(path, model, card)
    return path


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


def test_a_checkpoint_becomes_a_program_that_maps_the_same(checkpoint: Path) -> None:
    fixed = ("--static", "--size", "64x96", "--device", "cpu")
    status, shown, message = run("--checkpoint", checkpoint, "--format", "exported-program", *fixed)
    assert status == 0, message
    for said in ("exported-program", "plain", "batch 1, 64 x 96", "of the largest logit", "best.pt2"):
        assert said in shown
    exported = d2.load_exported(checkpoint.with_suffix(".pt2"))
    model, card = d2.load_checkpoint(checkpoint)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 96), dtype=np.uint8)
    wanted = model(torch.from_numpy((images - np.float32(100)) / np.float32(50)))
    assert exported.card == card
    close = wanted.diff(dim=1)[:, 0].abs() < 1e-4
    assert bool(((torch.from_numpy(exported.predict(images)) == wanted.argmax(1)) | close).all())


def test_wrong_calls_leave_nothing_behind(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.pt2"
    common = ("--checkpoint", checkpoint, "--format", "exported-program", "--output", target)
    for arguments, expected in (
        ((*common, "--size", "64x64"), "go with --static"),
        ((*common, "--static"), "--static needs height and width"),
        ((*common, "--static", "--size", "64"), "--size 64: --static needs height and width"),
        ((*common, "--check", tmp_path / "none.tif"), "none.tif: no such image"),
        ((*common[:-1], checkpoint), "is the checkpoint to export"),
        ((*common[:-1], tmp_path / "out.onnx"), "ends in .pt2"),
        (("--checkpoint", tmp_path / "none.safetensors", *common[2:]), "no such checkpoint"),
    ):
        status, _, message = run(*arguments)
        assert status == 2 and expected in message and message.count("\n") == 1, message
    assert not list(tmp_path.iterdir())
