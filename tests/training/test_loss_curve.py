"""The fused operators learn as their definitions do."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from rich.console import Console
from tiny_recipe import write_recipe

from d2ls_fast.backends import backend, backends
from d2ls_fast.config import load_settings
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.fit import METRICS, fit

FUSED = "cpu" if backends()["cpu"] == "available" else "torch"
STEPS = 50


def losses(folder: Path, name: str) -> list[float]:
    recipe = write_recipe(
        folder,
        output=str(folder / name),
        # No batch norm: over two pixels at stride 32 it turns a rounding error into another sign.
        model={"backbone": "convnext_atto", "embed_dim": 32, "num_heads": 2, "stages": 2},
        loss={"intermediate_weight": 0.2, "contrastive_weight": 0.1},
        optimizer={"lr": 1e-3},
        steps=STEPS,
        evaluate_every=STEPS,
        batch_size=2,
    )
    with backend(name):
        fit(load_settings(TrainSettings, recipe), console=Console(quiet=True))
    with (folder / name / METRICS).open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


def test_fused_and_reference_have_one_loss_curve(tmp_path: Path) -> None:
    """With every term; float32."""
    fused, reference = (losses(tmp_path, name) for name in (FUSED, "reference"))
    assert len(fused) == STEPS and fused[-1] < 0.7 * fused[0]
    assert fused == pytest.approx(reference, rel=1e-3)
