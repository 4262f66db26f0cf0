"""For engineers: train on your own imagery and masks, map a georeferenced scene, look at it.

    python examples/train_and_map_your_imagery.py     # or cell by cell, in any editor that knows "# %%"

The images have four bands of 16 bits; the masks are RGB pictures in which a colour means a class. Everything is written
below runs/your-imagery. On the command line the same is: d2ls-fast data check, train, evaluate, predict.
"""

# %% What you may change: STEPS = 300, CROP = 160, SCALE = 2.0 and a pretrained backbone are configs/demo.yaml
from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import rasterio
from PIL import Image

from d2ls_fast.cli.data import check
from d2ls_fast.cli.predict import predict
from d2ls_fast.cli.train import train
from d2ls_fast.config import read_yaml
from d2ls_fast.files import write_yaml
from d2ls_fast.training.fit import PAGE, REPORT
from d2ls_fast.training.outputs import BEST_MODEL

SAMPLE = Path(__file__).resolve().parent / "sample"
OUTPUT = Path("runs/your-imagery")
SCENE = SAMPLE / "sentinel2-scene.tif"
STEPS, CROP, BATCH, SCALE = 40, 96, 4, 1.0
COLOURS = {"clear": (60, 120, 60), "thin cloud": (120, 200, 255), "thick cloud": (255, 255, 255)}

# %% Your data: images/NAME.tif and masks/NAME.png; here the sample's masks are painted first
images, masks = OUTPUT / "data" / "images", OUTPUT / "data" / "masks"
for folder in (images, masks):
    folder.mkdir(parents=True, exist_ok=True)
palette = np.array([*COLOURS.values()], np.uint8)
for path in sorted((SAMPLE / "landsat8-cloud" / "images").glob("*.tif")):
    (images / path.name).write_bytes(path.read_bytes())
    with rasterio.open(SAMPLE / "landsat8-cloud" / "masks" / path.name) as file:
        Image.fromarray(palette[file.read(1)]).save(masks / f"{path.stem}.png")

# %% The recipe: a file, so that the run can be repeated and changed (d2ls_fast/training/config.py has every setting)
recipe = OUTPUT / "recipe.yaml"
write_yaml(
    recipe,
    {
        "name": "your imagery",
        "output": str(OUTPUT / "run"),
        "model": {"backbone": "mobilenetv3_small_050", "embed_dim": 64, "num_heads": 4, "stages": 2},
        "data": {
            "root": str(OUTPUT / "data"),
            "bands": [1, 2, 3, 4],  # any, in any order
            "masks": "colour",
            "classes": [{"name": name, "colour": list(colour)} for name, colour in COLOURS.items()],
            "split": {"by": "spatial", "val": 0.25, "shift": 0.5},  # neighbours stay on one side
            "normalisation": "dataset",  # measured; stored in the checkpoint with the bands
            "scale": SCALE,
        },
        "augment": {"crop": CROP, "scales": [0.75, 1.0, 1.25]},
        "loss": {"class_weights": "frequencies", "contrastive_weight": 0.1},  # thick cloud is rare
        "optimizer": {"lr": 4.0e-3},
        "schedule": {"kind": "cosine", "warmup": 10},
        "steps": STEPS,
        "batch_size": BATCH,
        "evaluate_every": STEPS // 2,
        "ema": 0.9,
        "log_every": 5,
    },
)

# %% Is the data what you think it is? Counts, class shares, band statistics, every fault, and a contact sheet
check(recipe, output=OUTPUT / "check")

# %% Train: progress, scores, checkpoints, and a report in one HTML file
train(recipe, overwrite=True)

# %% Map a scene of any size: what comes out lies where the scene lies
predict([str(SCENE)], OUTPUT / "run" / BEST_MODEL, OUTPUT / "map", confidence=True)
with rasterio.open(SCENE) as scene, rasterio.open(OUTPUT / "map" / f"{SCENE.stem}_labels.tif") as labels:
    assert (labels.crs, labels.transform, labels.shape) == (scene.crs, scene.transform, scene.shape)
    found, picture = labels.read(1), scene.read([1, 2, 3])
    hectares = {
        name: float((found == index).sum() * labels.res[0] * labels.res[1] / 1e4) for index, name in enumerate(COLOURS)
    }
    print(f"{labels.crs}, {labels.width} x {labels.height} pixels of {labels.res[0]:.0f} m")
    print("hectares:", ", ".join(f"{name} {area:.0f}" for name, area in hectares.items()))

# %% Look at it (in a notebook the figure appears; the maps open in any GIS)
figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
axes[0].imshow(np.moveaxis(np.clip(picture / np.percentile(picture, 99), 0, 1), 0, -1))
axes[1].imshow(palette[found])
for axis, title in zip(axes, (SCENE.name, "labels"), strict=True):
    axis.set(title=title, xticks=[], yticks=[])
figure.savefig(OUTPUT / "look.png", dpi=100)

print(f"held-out mean IoU {read_yaml(OUTPUT / 'run' / REPORT)['best']['mean_iou']:.1%}")
for path in (OUTPUT / "run" / PAGE, OUTPUT / "check" / "contact_sheet.png", OUTPUT / "look.png"):
    print(f"look at {path}")
