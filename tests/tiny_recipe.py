"""A recipe that trains in seconds: twelve 48 x 48 images, two classes told apart by their colour, a small network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

CLASSES = ["dark", "bright"]


def write_images(root: Path, count: int = 12, bands: int = 3, classes: int = 2) -> None:
    """``root/images/*.png`` and ``root/masks/*.png``: class k has brightness near 200 k / (classes - 1) + 20."""
    random = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        labels = np.zeros((48, 48), np.uint8)
        for k in range(1, classes):
            top, left = random.integers(0, 24, 2)
            labels[top : top + 24, left : left + 24] = k
        light = 20 + 200 * labels[..., None] / max(1, classes - 1) + random.normal(0, 8, (48, 48, bands))
        image = light.clip(0, 255).astype(np.uint8)
        labels[:2] = 255
        Image.fromarray(image.squeeze()).save(root / "images" / f"{number:02d}.png")
        Image.fromarray(labels).save(root / "masks" / f"{number:02d}.png")


def write_recipe(folder: Path, **changes: Any) -> Path:
    """Write the images (once) and ``recipe.yaml`` below ``folder``; ``changes`` replace top-level keys."""
    root = folder / "data"
    if not root.exists():
        write_images(root)
    recipe = {
        "name": "tiny",
        "output": str(folder / "run"),
        "model": {"backbone": "mobilenetv3_small_050", "embed_dim": 32, "num_heads": 2, "stages": 1},
        "data": {
            "root": str(root),
            "split": {"by": "spatial", "val": 0.25},
            "classes": [{"name": name} for name in CLASSES],
            "normalisation": "half",
        },
        "augment": {"crop": 32, "scales": [1.0], "largest_class": 1.0},
        "optimizer": {"lr": 3e-3},
        "steps": 6,
        "evaluate_every": 3,
        "batch_size": 4,
        "log_every": 1,
        "device": "cpu",
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | changes))
    return path
