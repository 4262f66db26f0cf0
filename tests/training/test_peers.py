"""The peers under the trainer of D2LS: train, resume, evaluate and map by name."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tiny_recipe import write_recipe
from typer.testing import CliRunner

from d2ls_fast.cli.main import app
from d2ls_fast.config import load_settings
from d2ls_fast.models.build import PEER_OPTIONS
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.fit import fit


def train(folder: Path, name: str, *overrides: str, resume: bool = False) -> dict[str, Any]:
    settings = load_settings(
        TrainSettings, write_recipe(folder, steps=2, evaluate_every=2), (f"model.name={name}", *overrides)
    )
    return fit(settings, resume, console=Console(quiet=True))


@pytest.mark.parametrize("name", PEER_OPTIONS)
def test_a_recipe_of_d2ls_trains_its_peers_and_their_checkpoints_serve_every_command(name: str, tmp_path: Path) -> None:
    report = train(tmp_path, name, "ema=0.9")
    run = tmp_path / "run"
    assert report["settings"]["model"]["name"] == name and report["last"]["mean_iou"] >= 0
    row = next(csv.DictReader((run / "metrics.csv").open()))
    terms = [float(value) for key, value in row.items() if key.startswith("loss_") and value]
    assert sum(terms) == pytest.approx(float(row["loss"]), rel=1e-4)
    assert (row["loss_mask"] != "") == (name == "mask2former")

    checkpoint = run / "best.safetensors"
    invoke = CliRunner().invoke
    result = invoke(app, ["evaluate", str(tmp_path / "recipe.yaml"), "--checkpoint", str(checkpoint)])
    assert result.exit_code == 0, result.stderr
    assert (run / "evaluation/val.json").is_file()
    arguments = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "map"), "--window", "32", "--overlap", "8"]
    result = invoke(app, ["predict", str(tmp_path / "data/images/00.png"), *arguments])
    assert result.exit_code == 0, result.stderr
    assert any((tmp_path / "map").iterdir())


def test_prototypes_are_part_of_the_state_that_a_run_continues_from(tmp_path: Path) -> None:
    for folder, parts in (("whole", ["steps=4"]), ("parts", ["steps=2", "steps=4"])):
        (tmp_path / folder).mkdir()
        for number, steps in enumerate(parts):
            train(tmp_path / folder, "prototype", steps, "schedule.kind=constant", resume=number > 0)
    expected, found = (load_file(tmp_path / name / "run/last.safetensors") for name in ("whole", "parts"))
    assert expected["prototypes.appearances"].tolist() == [4.0, 4.0]
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key


def test_settings_of_d2ls_alone_are_passed_over_by_its_peers(tmp_path: Path) -> None:
    settings = load_settings(TrainSettings, write_recipe(tmp_path), ("model.name=upernet", "model.stages=5"))
    assert settings.model.arguments() == {
        "name": "upernet",
        "backbone": "mobilenetv3_small_050",
        "pretrained": False,
        "embed_dim": 32,
        "auxiliary": True,
    }
