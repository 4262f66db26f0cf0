"""Training with one crop size a step, drawn from a set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tiny_recipe import write_recipe

from d2ls_fast.config import load_settings
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.fit import fit
from d2ls_fast.training.module import SegmentationModule

AUGMENT = {"crop": 32, "batch_sizes": [32, 40, 64], "scales": [0.75, 1.25], "mosaic": 0.5, "sharpen": 0.5}


def test_a_resumed_run_sees_the_sizes_of_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    original = SegmentationModule.training_step

    def training_step(self: SegmentationModule, batch: dict[str, Any], batch_index: int) -> torch.Tensor:
        seen.append(tuple(batch["image"].shape))
        return original(self, batch, batch_index)

    monkeypatch.setattr(SegmentationModule, "training_step", training_step)

    def train(folder: Path, steps: int, resume: bool = False) -> dict[str, torch.Tensor]:
        folder.mkdir(exist_ok=True)
        schedule = {"kind": "constant"}
        recipe = write_recipe(folder, augment=AUGMENT, steps=steps, accumulate=2, batch_size=2, schedule=schedule)
        fit(load_settings(TrainSettings, recipe, ["evaluate_every=20"]), resume, console=Console(quiet=True))
        return load_file(folder / "run/last.safetensors")

    whole = train(tmp_path / "whole", 5)
    sizes, _ = list(seen), seen.clear()
    train(tmp_path / "parts", 1)
    parts = train(tmp_path / "parts", 5, resume=True)

    assert seen == sizes and len(sizes) == 10
    assert sizes[::2] == sizes[1::2]  # both batches of a step
    assert len(set(sizes)) > 1 and {side for *_, side in sizes} <= {32, 40, 64}
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
