"""What mapping a scene costs beside the model, what it holds in memory, and how far the map depends on the windows.

- busy: the wall time of mapping a scene, files read and written, against the model's own time for the same windows,
  which are then in memory; both in turns.
- memory: the highest resident memory of a process that maps a synthetic scene, by the scene's side.
- tta: what the preset ``flips`` (four passes) costs against one pass, the model's time for one batch of windows.
- seams: the share of pixels whose label changes when the grid of windows is shifted by half a window, by the way of
  blending. The dictionary and the positional encoding depend on the window, so it cannot be none.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import rasterio
import torch
from rich import box
from rich.table import Table

from d2ls_fast.data.raster import read_image
from d2ls_fast.errors import UserError
from d2ls_fast.files import replacing
from d2ls_fast.inference.predictor import Predictor
from d2ls_fast.inference.scene import map_scene
from d2ls_fast.inference.scoring import WindowReader
from d2ls_fast.inference.sources import open_scene
from d2ls_fast.inference.windows import Blend
from d2ls_fast.models.checkpoint import ModelCard, save_checkpoint
from d2ls_fast.models.model import create_model

SMALL_MODEL = {"backbone": "mobilenetv3_small_050", "num_classes": 7, "stages": 1, "embed_dim": 64}
TILE = 512


@dataclass(frozen=True)
class Busy:
    """Medians over the rounds."""

    scene: str
    windows: int
    map_seconds: float
    model_seconds: float
    ratio: float
    """Median of the rounds' own ratios."""


@dataclass(frozen=True)
class Memory:
    """One process that maps a synthetic scene of three uint8 bands, :data:`SMALL_MODEL`, seven classes."""

    side: int
    peak_mb: float
    start_mb: float
    """Of a process that has imported the package, made the model and run it once."""
    seconds: float


@dataclass(frozen=True)
class Augmented:
    """Medians over the rounds."""

    preset: str
    passes: int
    one_pass_seconds: float
    all_passes_seconds: float
    ratio: float


@dataclass(frozen=True)
class Seams:
    """Changed labels after a shift of the windows by half a window."""

    blend: str
    changed_percent: float
    pixels: int


def measure_busy(checkpoint: Path, scene: Path, rounds: int, advance: Callable[[], None]) -> Busy:
    """Map ``scene`` and run the model on its windows, in turns."""
    predictor = Predictor(checkpoint)
    with open_scene(scene, predictor.card.bands) as source:
        rows, columns = predictor.axes(source)
        reader = WindowReader(source, rows, columns, predictor.card.mean, predictor.card.std)
        found = list(reader.read(range(len(rows)), depth=2))
    batches: list[torch.Tensor] = []
    for start in range(0, len(found), len(columns)):  # a batch does not reach into the next row of windows
        images = [window.image for window in found[start : start + len(columns)] if window.image is not None]
        size = predictor.batch_of(len(columns))
        batches += [torch.stack(images[i : i + size]) for i in range(0, len(images), size)]
    times = []
    for _ in range(rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            whole = _seconds(lambda: map_scene(predictor, scene, Path(folder)))
        own = _seconds(lambda: [predictor.probabilities(images) for images in batches])
        times.append((whole, own))
        advance()
    times = times[1:]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    ratio = statistics.median(whole / own for whole, own in times)
    return Busy(scene.name, sum(map(len, batches)), *medians, ratio)


def measure_tta(checkpoint: Path, rounds: int, advance: Callable[[], None]) -> Augmented:
    """Time one window with and without ``flips``, in turns."""
    plain, augmented = (Predictor(checkpoint, window=512, batch=1, tta=preset) for preset in ("none", "flips"))
    images = torch.randn(1, len(plain.card.mean), 512, 512)
    times = [
        (_seconds(lambda: plain.probabilities(images)), _seconds(lambda: augmented.probabilities(images)))
        for _ in range(rounds + 1)
    ][1:]
    advance()
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    ratio = statistics.median(all_passes / one for one, all_passes in times)
    return Augmented("flips", augmented.tta.passes, *medians, ratio)


def measure_memory(sides: Sequence[int], advance: Callable[[], None]) -> list[Memory]:
    """Map synthetic scenes of these ``sides``, each in a process of its own."""
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        torch.manual_seed(0)
        model = create_model(**SMALL_MODEL)
        names = [f"class {i}" for i in range(7)]
        card = ModelCard(model.config, names, [[i, 0, 0] for i in range(7)], [1, 2, 3], [127.0] * 3, [60.0] * 3)
        save_checkpoint(folder / "model.safetensors", model, card)
        write_synthetic_scene(folder / "start.tif", TILE)
        start_mb, _ = _peak(folder / "model.safetensors", folder / "start.tif", folder / "map")
        for side in sides:
            scene = folder / f"{side}.tif"
            write_synthetic_scene(scene, side)
            peak_mb, seconds = _peak(folder / "model.safetensors", scene, folder / "map")
            scene.unlink()
            results.append(Memory(side, peak_mb, start_mb, seconds))
            advance()
    return results


def write_synthetic_scene(path: Path, side: int) -> None:
    """A tiled GeoTIFF of three uint8 bands: smooth noise, another cut of it in every tile, so that nothing repeats."""
    noise = np.random.default_rng(0).integers(0, 255, (3, 3 * TILE, 3 * TILE), dtype=np.uint8)
    place: dict[str, Any] = {"crs": "EPSG:32616", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000)}
    shape: dict[str, Any] = {"count": 3, "height": side, "width": side, "dtype": "uint8"}
    with rasterio.open(
        path, "w", driver="GTiff", tiled=True, blockxsize=TILE, blockysize=TILE, bigtiff="if_safer", **shape, **place
    ) as target:
        for number, (_, window) in enumerate(target.block_windows(1)):
            down, across = number * 37 % (2 * TILE), number * 101 % (2 * TILE)
            cut = noise[:, down : down + window.height, across : across + window.width]
            target.write(cut, window=window)


def measure_seams(checkpoint: Path, scene: Path, advance: Callable[[], None]) -> list[Seams]:
    """Labels of two grids of windows, half a window apart, compared away from the edges of what both see."""
    results = []
    for blend in get_args(Blend):
        predictor = Predictor(checkpoint, blend=blend)
        image, _, nodata = read_image(scene, predictor.card.bands)
        step = round((predictor.window - predictor.overlap) / predictor.card.scale)
        window = round(predictor.window / predictor.card.scale)
        half = window // 2
        # A grid has exactly this step where the windows fit without being moved together.
        tall, wide = ((length - half - window) // step * step + window for length in image.shape[1:])
        if min(image.shape[1:]) < window + step + half:
            raise UserError(f"{scene}: too small to shift windows of {window} pixels in; name a larger scene")
        one = predictor.predict(image[:, :tall, :wide], nodata)[half:, half:]
        other = predictor.predict(image[:, half : half + tall, half : half + wide], nodata)[
            : tall - half, : wide - half
        ]
        inner = np.s_[half : tall - 2 * half, half : wide - 2 * half]
        changed = one[inner] != other[inner]
        results.append(Seams(blend, 100 * float(changed.mean()), changed.size))
        advance()
    return results


def tables(busy: Busy, tta: Augmented, memory: Sequence[Memory], seams: Sequence[Seams]) -> list[Table]:
    """The figures, as tables for a terminal or for Markdown."""
    first = _table(f"mapping {busy.scene}, {busy.windows} windows", "wall s", "the model's own s", "ratio")
    first.add_row(f"{busy.map_seconds:.2f}", f"{busy.model_seconds:.2f}", f"{busy.ratio:.3f}")
    second = _table("resident memory while mapping a synthetic scene", "side", "peak MB", "above the model's MB", "s")
    for each in memory:
        second.add_row(
            str(each.side), f"{each.peak_mb:.0f}", f"{each.peak_mb - each.start_mb:.0f}", f"{each.seconds:.0f}"
        )
    third = _table(f"labels changed by a shift of half a window, {busy.scene}", "blending", "changed %", "of pixels")
    for seam in seams:
        third.add_row(seam.blend, f"{seam.changed_percent:.2f}", str(seam.pixels))
    fourth = _table("test-time augmentation", "preset", "passes", "one pass s", "all passes s", "ratio")
    one, all_passes = f"{tta.one_pass_seconds:.3f}", f"{tta.all_passes_seconds:.3f}"
    fourth.add_row(tta.preset, str(tta.passes), one, all_passes, f"{tta.ratio:.2f}")
    return [first, second, third, fourth]


def write(
    facts: dict[str, Any],
    busy: Busy,
    tta: Augmented,
    memory: Sequence[Memory],
    seams: Sequence[Seams],
    output: Path,
) -> list[Path]:
    """The results as ``output.json`` and ``output.md``."""
    from rich.console import Console

    paths = [output.with_name(f"{output.name}{suffix}") for suffix in (".json", ".md")]
    content = {
        "machine": facts,
        "busy": asdict(busy),
        "tta": asdict(tta),
        "small model": SMALL_MODEL,
        "memory": [asdict(each) for each in memory],
        "seams": [asdict(each) for each in seams],
    }
    with replacing(paths[0]) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with replacing(paths[1]) as temporary, temporary.open("w", encoding="utf-8") as file:
        console = Console(file=file, width=110)
        console.print("# Mapping scenes\n", highlight=False)
        console.print("\n".join(f"- {key}: {value}" for key, value in facts.items()), soft_wrap=True, highlight=False)
        console.print(f"- memory: {SMALL_MODEL}\n", soft_wrap=True, highlight=False)
        for table in tables(busy, tta, memory, seams):
            table.box = box.MARKDOWN
            console.print(f"{table.title}\n", highlight=False)
            table.title = None
            console.print(table)
            console.print()
    return paths


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _peak(checkpoint: Path, scene: Path, output: Path) -> tuple[float, float]:
    """The highest resident memory, in MB, of a process that maps ``scene``, and how long it took, in seconds."""
    command = [sys.executable, "-m", "d2ls_fast.cli.main", "predict", str(scene)]
    options = ["--checkpoint", str(checkpoint), "--output", str(output), "--device", "cpu", "--restart"]
    start = time.perf_counter()
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        assert process.stderr is not None
        raise UserError(process.stderr.read().decode(errors="replace").removeprefix("error: "))
    kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return kilobytes / 1024, time.perf_counter() - start
