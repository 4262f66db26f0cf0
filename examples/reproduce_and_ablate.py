"""For researchers: released checkpoints, the authors' settings, ablations, ideas of your own.

    python examples/reproduce_and_ablate.py     # or cell by cell, in any editor that knows "# %%"

Everything is written below runs/research. On the command line: d2ls-fast convert, train, evaluate, ablate.
"""

# %% What you may change: name a released checkpoint, train for longer, over more seeds
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import d2ls_fast as d2
from d2ls_fast.config import load_settings
from d2ls_fast.models.load_official import convert_official
from d2ls_fast.models.official_card import official_card
from d2ls_fast.training import ablation_report
from d2ls_fast.training.ablate import ROWS, ablate, folder_of
from d2ls_fast.training.config import TrainSettings

REPOSITORY = Path(__file__).resolve().parents[1]
OUTPUT = Path("runs/research")
RELEASED: Path | None = None  # a checkpoint of the release, such as loveda.ckpt; None makes a stand-in of its form
DATASET = "loveda"
STEPS, CROP, BATCH, SEEDS = 20, 64, 4, 1
SMALL = ["model.backbone=mobilenetv3_small_050", "model.pretrained=false", "model.embed_dim=64", "model.num_heads=4"]
torch.manual_seed(0)
OUTPUT.mkdir(parents=True, exist_ok=True)

# %% A released checkpoint: a Lightning file whose keys begin with "net."; opening it runs no code from it
if RELEASED is None:
    released = OUTPUT / "stand-in.ckpt"
    stand_in = d2.create_model("torchvision:mobilenet_v3_large", num_classes=7)
    torch.save({"state_dict": {f"net.{k}": v for k, v in stand_in.to_official_state_dict().items()}}, released)
else:
    released = RELEASED

# %% What became of every key, and the model; backbone, classes, stages and width are read from the shapes
model, report = convert_official(released)
print(f"{model.config['backbone']}, {model.config['num_classes']} classes, {model.config['stages']} stages")
print(
    f"{len(report.used)} keys used, {len(report.dead)} that the release never uses, {len(report.unexpected)} unexpected"
)
converted = OUTPUT / "converted.safetensors"
d2.save_checkpoint(converted, model, official_card(model, DATASET))

# %% The fast kernels and the release's own order of operations give the same scores
images = torch.randn(1, 3, 256, 256)
with torch.no_grad():
    fast = model(images)
    with d2.backend("reference"):
        slow = model(images)
print(f"largest difference of the logits {(fast - slow).abs().max():.1e}, of logits up to {slow.abs().max():.1f}")
print(f"pixels with another label: {(fast.argmax(1) != slow.argmax(1)).sum().item()}")

# %% And back: keys, prefix and order of the released file, for the release's own code
returned = model.to_official_state_dict(like=released)
original = torch.load(released, weights_only=True)["state_dict"]
print(f"back to the release, all keys equal: {all(torch.equal(returned[k], original[k]) for k in original)}")


# %% The authors' recipe against one to be believed: what differs
def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names, as they are overridden."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


recipes = {
    name: flat(
        load_settings(TrainSettings, REPOSITORY / "configs" / DATASET / f"{name}.yaml", ["data.root=DATA"]).model_dump()
    )
    for name in ("paper", "honest")
}
for key in sorted(recipes["paper"].keys() | recipes["honest"].keys()):
    paper, honest = (recipes[name].get(key) for name in ("paper", "honest"))
    if paper != honest and key not in ("name", "output"):
        print(f"{key:32} paper {paper!s:22} honest {honest}")

# %% An ablation: the same recipe with one part taken away, over seeds; finished runs are not done again
print("rows:", ", ".join(ROWS))
settings = load_settings(
    TrainSettings,
    REPOSITORY / "configs" / "demo.yaml",
    [
        *SMALL,
        f"data.root={REPOSITORY / 'examples' / 'sample' / 'landsat8-cloud'}",
        f"output={OUTPUT}",
        f"steps={STEPS}",
        f"evaluate_every={STEPS}",
        f"augment.crop={CROP}",
        f"batch_size={BATCH}",
        "data.scale=1.0",
        "ema=0.8",
        "gallery=0",
    ],
)
rows = ablate(settings, SEEDS, ["full", "static"])
Console().print(ablation_report.table(rows))
for path in ablation_report.write(folder_of(settings), rows, settings, "examples/reproduce_and_ablate.py"):
    print(f"wrote {path}")

# %% An idea of your own: three prototypes a class, each stage supervised; the head takes whatever gives it four maps
CHANNELS, STRIDES = (32, 64, 128, 256), (4, 8, 16, 32)
head = d2.D2LSHead(CHANNELS, num_classes=3, embed_dim=64, num_heads=4, prototypes=3, intermediate=True)
maps = [
    torch.randn(2, channels, 128 // stride, 128 // stride) for channels, stride in zip(CHANNELS, STRIDES, strict=True)
]
loss = d2.nn.D2LSLoss(intermediate_weight=0.4, contrastive="pixels")
total, terms = loss(head(maps, keep_logits=False), torch.randint(0, 3, (2, 128, 128)))
total.backward()
print(f"loss {total.item():.3f} =", " + ".join(f"{name} {term.item():.3f}" for name, term in terms.items()))
