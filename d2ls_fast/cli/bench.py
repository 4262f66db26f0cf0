"""``d2ls-fast bench``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Level(str, Enum):
    """What is timed."""

    operator = "operator"
    head = "head"
    model = "model"
    train = "train"
    patch = "patch"
    sam = "sam"
    data = "data"
    map = "map"


class Device(str, Enum):
    """Where it is timed."""

    cpu = "cpu"
    cuda = "cuda"


class Precision(str, Enum):
    """In which dtype."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def bench(
    level: Annotated[Level, typer.Argument(help="what is timed")] = Level.operator,
    recipe: Annotated[
        list[str] | None,
        typer.Argument(
            help="of level data: the recipe, and settings to change; of level map: a checkpoint and a scene",
            metavar="[CONFIG [KEY=VALUE]... | CHECKPOINT SCENE]",
        ),
    ] = None,
    device: Annotated[Device, typer.Option(help="cpu or cuda")] = Device.cpu,
    precision: Annotated[Precision, typer.Option(help="fp32, bf16 or fp16")] = Precision.fp32,
    size: Annotated[list[int] | None, typer.Option(help="image edge in pixels; give it again to sweep")] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="batch size, of level sam: prompts; give it again to sweep")
    ] = None,
    classes: Annotated[list[int] | None, typer.Option(help="dictionary entries; give it again to sweep")] = None,
    stages: Annotated[list[int] | None, typer.Option(help="interaction stages; give it again to sweep")] = None,
    backbone: Annotated[str, typer.Option(help="timm backbone of the levels model and train")] = "convnext_tiny",
    only: Annotated[str, typer.Option(help="only cases whose name contains this")] = "",
    repeats: Annotated[int, typer.Option(min=3, help="timed rounds; training steps of level data")] = 15,
    output: Annotated[Path | None, typer.Option(help="results without suffix: writes .json, .md and .png")] = None,
) -> None:
    """Time the fused kernels against the named baselines in one interleaved run; refuses to time a wrong result.

    Level data times a recipe's data loading, and the share of its training steps that is spent waiting for data. Level
    map compares the mapping of a scene with the model's own time, and measures its memory on synthetic scenes (--size).
    """
    import itertools

    import torch
    from rich.console import Console

    from d2ls_fast.benchmarks import harness, machine, results
    from d2ls_fast.benchmarks.cases import LEVELS, Sizes
    from d2ls_fast.errors import UserError
    from d2ls_fast.files import writable_folder

    if device is Device.cuda and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    if output is not None:
        writable_folder(output.parent, "--output")
    if level is Level.data:
        return bench_data(recipe or [], device.value, repeats, output)
    if level is Level.map:
        return bench_map(recipe or [], device.value, size or [5000, 20_000], repeats, output)
    if recipe:
        raise UserError(f"{recipe[0]}: only the levels data and map take a file; d2ls-fast bench data {recipe[0]}")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision.value]
    sweep = itertools.product(size or [512], batch or [1], classes or [7], stages or [3])
    console = Console()
    limits = harness.Limits(machine.copy_bandwidth(device.value), machine.matrix_rate(device.value, dtype))
    report = harness.Report(machine.describe(device.value))
    report.machine["copy bandwidth"] = f"{limits.copy_bandwidth / 1e9:.1f} GB/s"
    report.machine["matrix rate"] = f"{limits.matrix_rate / 1e9:.0f} GFLOP/s ({precision.value}, square product)"
    cases = [
        case
        for edge, images, entries, depth in sweep
        for case in LEVELS[level.value](Sizes(images, edge, entries, depth, dtype, device.value, backbone))
        if only in case.name
    ]
    if not cases:
        raise UserError(f"--only {only}: no case of level {level.value} has that in its name")
    report.rows = harness.run_cases(cases, device.value, limits, repeats, console)
    console.print(", ".join(f"{key}: {value}" for key, value in report.machine.items()))
    for table in results.tables(report):
        console.print(table)
    if output is not None:
        for path in results.write(report, output):
            console.print(f"wrote {path}")


def bench_data(recipe: list[str], device: str, steps: int, output: Path | None) -> None:
    """Time the data loading of ``recipe`` (its path, then settings to change)."""
    from rich.console import Console
    from rich.progress import Progress

    from d2ls_fast.benchmarks import data_loading, machine
    from d2ls_fast.config import load_settings
    from d2ls_fast.errors import UserError
    from d2ls_fast.training.config import TrainSettings

    if not recipe:
        raise UserError("bench data: no recipe is named; give one, such as d2ls-fast bench data configs/demo.yaml")
    settings = load_settings(TrainSettings, recipe[0], [*recipe[1:], f"device={device}"])
    console = Console()
    facts = machine.describe(device)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        rates, waiting = data_loading.measure(settings, steps, progress)
    console.print(", ".join(f"{key}: {value}" for key, value in facts.items()))
    for table in data_loading.tables(rates, waiting):
        console.print(table)
    if output is not None:
        for path in data_loading.write(facts, " ".join(recipe), rates, waiting, output):
            console.print(f"wrote {path}")


def bench_map(files: list[str], device: str, sides: list[int], rounds: int, output: Path | None) -> None:
    """Measure the mapping of a scene; ``files`` are the checkpoint and the scene."""
    from rich.console import Console
    from rich.progress import Progress

    from d2ls_fast.benchmarks import machine, mapping
    from d2ls_fast.errors import UserError

    if len(files) != 2:
        raise UserError(
            "bench map: takes a checkpoint and a scene; d2ls-fast bench map runs/demo/best.safetensors SCENE"
        )
    checkpoint, scene = map(Path, files)
    console = Console()
    facts = machine.describe(device)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("mapping", total=rounds + 1 + 1 + 3 + len(sides))

        def advance() -> None:
            progress.advance(task)

        busy = mapping.measure_busy(checkpoint, scene, rounds, advance)
        tta = mapping.measure_tta(checkpoint, rounds, advance)
        seams = mapping.measure_seams(checkpoint, scene, advance)
        memory = mapping.measure_memory(sides, advance)
    for table in mapping.tables(busy, tta, memory, seams):
        console.print(table)
    if output is not None:
        for path in mapping.write(facts, busy, tta, memory, seams, output):
            console.print(f"wrote {path}")
