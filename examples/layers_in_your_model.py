"""For kernel users: the layers and operators of D2LS in a model of your own.

    python examples/layers_in_your_model.py     # or cell by cell, in any editor that knows "# %%"

A small network of your own finds clouds in the carried Landsat scene. Its encoder and its training loop are plain
PyTorch; the interaction of pixels and class dictionary, the classifier and the loss are this package's. Writes nothing.
"""

# %% What you may change
from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from torch import Tensor, nn

import d2ls_fast as d2
from d2ls_fast.benchmarks.official_structure import official_head
from d2ls_fast.models.patching import patch_report

SAMPLE = Path(__file__).resolve().parent / "sample" / "landsat8-cloud"
EMBED, HEADS, STAGES = 64, 4, 2
STEPS, CROP, BATCH = 80, 96, 4
CLASSES = ["clear", "thin cloud", "thick cloud"]
torch.manual_seed(0)


# %% Your data, read your way: the second column of tiles is held out
def read(path: Path) -> Tensor:
    with rasterio.open(path) as file:
        return torch.from_numpy(file.read().astype(np.float32))


tiles = sorted((SAMPLE / "images").glob("*.tif"))
pairs = {path: (read(path), read(SAMPLE / "masks" / path.name)[0].long()) for path in tiles}
held_out = [pair for path, pair in pairs.items() if path.stem.endswith("c1")]
training = [pair for path, pair in pairs.items() if not path.stem.endswith("c1")]
values = torch.cat([image.flatten(1) for image, _ in training], dim=1)
mean, std = values.mean(1).view(-1, 1, 1), values.std(1).view(-1, 1, 1)


# %% Your model
class CloudModel(nn.Module):
    """Four bands in; any encoder with a map at a quarter of the size will do."""

    def __init__(self, bands: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(bands, EMBED // 2, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(EMBED // 2, EMBED, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(EMBED, EMBED, 5, padding=2, groups=EMBED),
            nn.Conv2d(EMBED, EMBED, 1),
        )
        self.positions = d2.nn.RandomFourierPositions(EMBED)
        self.dictionary = d2.nn.ClassDictionary(num_classes, EMBED)
        self.interaction = d2.nn.AlternatingCrossAttention(EMBED, HEADS, STAGES)
        self.classifier = d2.nn.PixelClassifier(num_classes, EMBED)

    def forward(self, images: Tensor) -> d2.nn.PixelScores:
        features = self.encoder(images)
        grid = (features.shape[2], features.shape[3])
        pixels = features.flatten(2).transpose(1, 2)  # [B, N, C], one row a pixel
        start = self.dictionary.static(len(images))  # [B, K, C], one row a class
        dictionary, pixels = self.interaction(pixels, self.positions(*grid), start)
        return self.classifier.scores(pixels, dictionary, grid)  # logits, labels or the loss come from this


model = CloudModel(len(mean), len(CLASSES))


# %% Your training loop: the loss is computed from the scores, the logits are never stored
def batch() -> tuple[Tensor, Tensor]:
    images, targets = [], []
    for index in torch.randint(len(training), (BATCH,)):
        image, label = training[index]
        top, left = (int(torch.randint(size - CROP + 1, ())) for size in label.shape)
        images.append((image[:, top : top + CROP, left : left + CROP] - mean) / std)
        targets.append(label[top : top + CROP, left : left + CROP])
    return torch.stack(images), torch.stack(targets)


optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
started = time.perf_counter()
for step in range(STEPS):
    images, targets = batch()
    cross_entropy, dice = model(images).segmentation_loss(targets, ignore_index=255)
    optimizer.zero_grad()
    (cross_entropy + dice).backward()
    optimizer.step()
    if step % (STEPS // 4) == 0 or step == STEPS - 1:
        print(f"step {step:3d}: cross-entropy {cross_entropy.item():.3f}, dice {dice.item():.3f}")
print(f"{STEPS} steps in {time.perf_counter() - started:.1f} s")

# %% How good it is on the tiles held out
confusion = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.long)
with torch.no_grad():
    for image, label in held_out:
        height, width = (size // 4 * 4 for size in label.shape)
        labels, _ = model(((image - mean) / std)[None, :, :height, :width]).labels()
        truth = label[:height, :width]
        known = truth != 255
        pairs_seen = truth[known] * len(CLASSES) + labels[0][known]
        confusion += torch.bincount(pairs_seen, minlength=len(CLASSES) ** 2).view(len(CLASSES), -1)
overlap = confusion.diagonal() / (confusion.sum(0) + confusion.sum(1) - confusion.diagonal())
print("held-out IoU:", ", ".join(f"{name} {value:.1%}" for name, value in zip(CLASSES, overlap.tolist(), strict=True)))
print(f"held-out mean IoU {overlap.mean():.1%}")

# %% The kernels compute what the definition says, in less time
pixels, pixel_pe = torch.randn(1, 64 * 64, EMBED), model.positions(64, 64)
dictionary = torch.randn(1, len(CLASSES), EMBED)


def timed(backend: str) -> tuple[Tensor, float]:
    """The pixels after the interaction, and the median of five runs in milliseconds."""
    with d2.backend(backend), torch.no_grad():
        model.interaction(pixels, pixel_pe, dictionary)
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            result = model.interaction(pixels, pixel_pe, dictionary)[1]
            times.append(1e3 * (time.perf_counter() - begin))
    return result, sorted(times)[2]


for name, state in d2.backends().items():
    print(f"back end {name}: {state}")
(defined, slow), (fused, fast) = timed("reference"), timed("auto")
print(f"largest difference from the definition {(fused - defined).abs().max():.1e}")
print(f"interaction: {fast:.1f} ms, by the definition {slow:.1f} ms, {slow / fast:.1f} times as long")

# %% It compiles as one graph (no graph break would be let through); torch's default back end generates code on top
compiled = torch.compile(lambda images: model(images).logits(), fullgraph=True, backend="aot_eager")
with torch.no_grad():
    images, _ = batch()
    print(f"compiled, largest difference {(compiled(images) - model(images).logits()).abs().max():.1e}")

# %% One operator alone: queries look at pixels, and it differentiates like any PyTorch operation
query = torch.randn(1, 8, EMBED, requires_grad=True)
context, log_sum_exp = d2.ops.attend(pixels, pixel_pe, query)
context.square().mean().backward()
assert query.grad is not None
print(
    f"attend: context {list(context.shape)}, log-sum-exp {list(log_sum_exp.shape)}, gradient {list(query.grad.shape)}"
)

# %% Or keep another's D2LS, such as the release's own code or a fork of it: patch() exchanges its parts in place
CHANNELS, STRIDES = (32, 64, 128, 256), (4, 8, 16, 32)
theirs = official_head(CHANNELS, len(CLASSES)).eval()  # built like the release; put your model here
maps = [
    torch.randn(1, channels, 256 // stride, 256 // stride) for channels, stride in zip(CHANNELS, STRIDES, strict=True)
]
keys = list(theirs.state_dict())


def scored() -> tuple[Tensor, float]:
    """The logits, and the shortest of three runs in milliseconds."""
    times = []
    with torch.no_grad():
        for _ in range(3):
            begin = time.perf_counter()
            logits = theirs(maps)
            times.append(1e3 * (time.perf_counter() - begin))
    return logits, min(times)


before, slow = scored()
d2.patch(theirs)  # weights, keys and optimizers stay as they are; d2.unpatch(theirs) puts all back
after, fast = scored()
assert list(theirs.state_dict()) == keys
for name, part in patch_report(theirs).replaced.items():
    print(f"patched: {name or 'the whole'} ({part})")
print(f"largest difference after patch() {(after - before).abs().max():.1e}")
print(f"their head: {slow:.0f} ms, patched {fast:.0f} ms, {slow / fast:.1f} times as fast")
