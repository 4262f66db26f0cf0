"""For performance engineers: measure the kernels on your machine, judge the figures, add a case of your own.

    python examples/benchmark_on_your_machine.py     # or cell by cell, in any editor that knows "# %%"

Everything is written below runs/benchmark. On the command line: d2ls-fast bench operator|head|model|train.
"""

# %% What you may change: SIZE = 512 and REPEATS = 15 are what benchmarks/results/ holds
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

import d2ls_fast as d2
from d2ls_fast.benchmarks import harness, machine, results
from d2ls_fast.benchmarks.cases import Sizes, head_cases

REPOSITORY = Path(__file__).resolve().parents[1]
OUTPUT = Path("runs/benchmark")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE, CLASSES, STAGES, REPEATS = 128, 7, 3, 5
console = Console()

# %% What this machine can do at best: a plain copy, and a square product by the library
limits = harness.Limits(machine.copy_bandwidth(DEVICE), machine.matrix_rate(DEVICE, torch.float32))
report = harness.Report(machine.describe(DEVICE))
for name, value in report.machine.items():
    print(f"{name}: {value}")
print(f"copy {limits.copy_bandwidth / 1e9:.1f} GB/s, matrix product {limits.matrix_rate / 1e9:.0f} GFLOP/s")

# %% Fused against the released order of operations and the folded algebra in plain PyTorch
# Every variant is first held against the definition in float64; then all are timed in turns. Those under torch.compile
# take minutes to compile: `d2ls-fast bench` has them.
wanted = ("interaction forward", "classify to logits forward", "head to labels")
cases = [
    replace(case, variants=[variant for variant in case.variants if "compiled" not in variant.name])
    for case in head_cases(Sizes(1, SIZE, CLASSES, STAGES, device=DEVICE))
    if case.name in wanted
]
report.rows = harness.run_cases(cases, DEVICE, limits, REPEATS, console)
for table in results.tables(report):
    console.print(table)
for path in results.write(report, OUTPUT / "head"):
    print(f"wrote {path}")

# %% A case of your own: what it computes, by which ways, how wrong it may be, and what it moves and multiplies at least
generator = torch.Generator().manual_seed(0)
pixels, queries = (torch.randn(1, n, 256, generator=generator).to(DEVICE) for n in ((SIZE // 4) ** 2, 8 * CLASSES))
nowhere = torch.zeros(pixels.shape[1], 256, device=DEVICE)


def softmax_twice() -> list[Tensor]:
    """What one would write: the attention matrix is stored."""
    return [(queries @ pixels.transpose(1, 2)).softmax(-1) @ pixels]


def by_sdpa() -> list[Tensor]:
    return [torch.nn.functional.scaled_dot_product_attention(queries, pixels, pixels, scale=1.0)]


def fused() -> list[Tensor]:
    return [d2.ops.attend(pixels, nowhere, queries)[0]]


def exactly() -> list[Tensor]:
    wide, rows = pixels.double(), queries.double()
    return [(rows @ wide.transpose(1, 2)).softmax(-1) @ wide]


own = harness.Case(
    "look at the pixels",
    f"N={pixels.shape[1]} J={queries.shape[1]} C=256",
    exactly,
    [harness.Variant("as written", softmax_twice), harness.Variant("sdpa", by_sdpa), harness.Variant("fused", fused)],
    tolerance=1e-4,
    bytes_moved=pixels.nbytes + nowhere.nbytes,
    operations=4 * pixels.numel() * queries.shape[1],
)
for table in results.tables(harness.Report({}, harness.run_cases([own], DEVICE, limits, REPEATS, console))):
    console.print(table)

# %% A wrong result is never timed
wrong = harness.Variant("fused, but wrong", lambda: [1.01 * fused()[0]])
try:
    harness.run_case(harness.Case(own.name, own.setting, exactly, [own.variants[0], wrong], 1e-4), DEVICE, limits, 3)
except harness.WrongResult as refusal:
    print(f"refused: {refusal}")

# %% The committed figures, of another machine, beside yours
committed = json.loads((REPOSITORY / "benchmarks" / "results" / "cpu-head.json").read_text())
print(f"committed on {committed['machine']['processor']}, {committed['machine']['threads']} threads")
theirs = {row["case"]: row for row in committed["rows"] if row["variant"] == "fused"}
for row in report.rows:
    if row.variant == "fused":
        print(
            f"{row.case}: here {row.speedup:.1f} times as fast as the reference ({row.setting}),"
            f" there {theirs[row.case]['speedup']:.1f} ({theirs[row.case]['setting']})"
        )
