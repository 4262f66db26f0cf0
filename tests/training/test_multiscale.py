"""Training with one crop size a step, drawn from a set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_recipe import write_recipe

from d2ls_fast.config import load_settings
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.fit import fit
from d2ls_fast.training.module import SegmentationModule

AUGMENT = {"crop": 32, "batch_sizes": [32, 40, 64], "scales": [0.75, 1.25], "mosaic": 0.5, "sharpen": 0.5}


def test_each_step_has_its_size_in_a_resumed_run_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed after 1 step of 5: the batches that are left must be read once each, though they are more than were read
    before."""
    sizes: list[tuple[int, ...]] = []
    original = SegmentationModule.training_step

    def training_step(self: SegmentationModule, batch: dict[str, Any], batch_index: int) -> torch.Tensor:
        if len(sizes) == 2:
            sizes.append(())
            raise RuntimeError("stopped")
        sizes.append(tuple(batch["image"].shape))
        return original(self, batch, batch_index)

    monkeypatch.setattr(SegmentationModule, "training_step", training_step)
    recipe = write_recipe(tmp_path, augment=AUGMENT, accumulate=2, batch_size=2, evaluate_every=5, checkpoint_every=1)
    settings = load_settings(TrainSettings, recipe, ["steps=5"])
    with pytest.raises(RuntimeError, match="stopped"):
        fit(settings, console=Console(quiet=True))
    fit(settings, resume=True, console=Console(quiet=True))

    # of seed 42, with both batches of a step alike
    assert [size for size in sizes if size] == [(2, 3, side, side) for side in (40, 64, 64, 40, 32) for _ in range(2)]
