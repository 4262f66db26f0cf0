"""Measure both forms of the interaction over many sizes and fit the constants of ``d2ls_fast/nn/cost.py``.

Times attend and refine against attend_projected and refine_projected (forward, and forward + backward; float32 on the
CPU), fits the model's constants by least squares of the relative error, and shows for every size how many times longer
the model's choice takes than the better form. Writes ``benchmarks/results/projected_cost.md`` and ``.json``.

    python benchmarks/projected_cost.py [--output FOLDER]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d2ls_fast.benchmarks.machine import describe
from d2ls_fast.files import replacing
from d2ls_fast.nn.cost import costs, projecting_pays
from d2ls_fast.ops import attend, attend_projected, refine, refine_projected

PIXELS = 4096
SIZES = [  # C, D, H, K
    (64, 32, 8, 8), (64, 32, 8, 24), (64, 32, 8, 100),
    (128, 64, 8, 8), (128, 64, 8, 24), (128, 64, 8, 100),
    (256, 128, 4, 16), (256, 128, 4, 48), (256, 128, 4, 100),
    (256, 128, 8, 7), (256, 128, 8, 16), (256, 128, 8, 20), (256, 128, 8, 24), (256, 128, 8, 32), (256, 128, 8, 150),
    (256, 128, 16, 8), (256, 128, 16, 32), (256, 64, 8, 16), (256, 256, 8, 32),
    (512, 256, 8, 16), (512, 256, 8, 48), (1024, 512, 8, 16), (1024, 512, 8, 64), (1024, 512, 8, 100),
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Milliseconds of both directions together."""

    channels: int
    width: int
    heads: int
    entries: int
    folded_forward: float
    projected_forward: float
    folded_both: float
    projected_both: float
    chosen: str
    loss: float
    """Time of the chosen form over that of the better one, forward + backward."""


def measure(c: int, d: int, heads: int, k: int, repeats: int = 3) -> Row:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, pe, j = random(1, PIXELS, c), random(PIXELS, c), heads * k
    rows, values, entries = random(1, j, c) * c**-0.5, random(1, j, c), random(1, k, d) * (d / heads) ** -0.5
    weight, vectors = random(d, c) * c**-0.5, [random(c) for _ in range(3)]
    operators: dict[Callable[..., Any], list[Tensor]] = {
        attend: [x, pe, rows],
        refine: [x, pe, rows, random(1, j), values, *vectors],
        attend_projected: [x, pe, entries, weight, weight.clone()],
        refine_projected: [x, pe, entries, entries.clone(), weight, random(d), weight.t().contiguous(), *vectors],
    }
    times = []
    for operator, tensors in operators.items():
        arguments = () if operator is attend else (heads,)
        times.append(_times(lambda *t, f=operator, a=arguments: f(*t, *a), tensors, repeats))
    (ff, fb), (pf, pb) = ([sum(parts) for parts in zip(*both, strict=True)] for both in (times[:2], times[2:]))
    pays = projecting_pays(c, d, heads, k, costs("cpu", torch.float32))
    loss = (pb if pays else fb) / min(fb, pb)
    return Row(c, d, heads, k, ff, pf, fb, pb, "projected" if pays else "folded", loss)


def _times(function: Callable[..., Any], inputs: list[Tensor], repeats: int) -> tuple[float, float]:
    """Median milliseconds of the forward, and of forward + backward with all gradients but that of the encoding."""
    leaves = [t.clone().requires_grad_(i != 1) for i, t in enumerate(inputs)]
    learnt = [leaf for leaf in leaves if leaf.requires_grad]

    def forward() -> None:
        with torch.no_grad():
            function(*inputs)

    def both() -> None:
        result = function(*leaves)
        result = result[0] if isinstance(result, tuple) else result
        torch.autograd.grad(result, learnt, torch.ones_like(result))

    medians = []
    for run in (forward, both):
        seconds = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        medians.append(1e3 * statistics.median(seconds[1:]))
    return medians[0], medians[1]


def fit(rows: list[Row], direction: str) -> dict[str, float]:
    """The constants in multiply-adds, and the time of a multiply-add (both directions, one pixel) in picoseconds."""
    equations, times = [], []
    for row in rows:
        c, d, j, k = row.channels, row.width, row.heads * row.entries, row.entries
        equations += [[2 * j * c, j, 0, 0], [2 * c * d + 2 * k * d, 0, j, c]]
        times += [getattr(row, f"{form}_{direction}") * 1e9 / PIXELS / 2 for form in ("folded", "projected")]
    weights = 1 / np.array(times)
    solution, *_ = np.linalg.lstsq(np.array(equations) * weights[:, None], np.ones(len(times)), rcond=None)
    names = ("folded_score", "projected_score", "projected_channel")
    return {"picoseconds": float(solution[0])} | {
        name: float(value / solution[0]) for name, value in zip(names, solution[1:], strict=True)
    }


def markdown(machine: dict[str, object], fits: dict[str, dict[str, float]], rows: list[Row]) -> str:
    lines = [f"{key}: {value}  " for key, value in machine.items()]
    lines += ["", f"Both directions, {PIXELS} pixels, milliseconds. Constants that fit best, in multiply-adds:", ""]
    for name, constants in fits.items():
        lines.append(f"- {name}: " + ", ".join(f"{key} {value:.0f}" for key, value in constants.items()))
    header = ("C", "D", "H", "K", "folded", "projected", "folded f+b", "projected f+b", "chosen", "against the better")
    lines += ["", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        times = (row.folded_forward, row.projected_forward, row.folded_both, row.projected_both)
        cells = [str(v) for v in (row.channels, row.width, row.heads, row.entries)] + [f"{t:.2f}" for t in times]
        lines.append("| " + " | ".join([*cells, row.chosen, f"{row.loss:.2f}x"]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    folder = parser.parse_args().output
    rows = [measure(*size) for size in SIZES]
    fits = {"forward": fit(rows, "forward"), "forward + backward": fit(rows, "both")}
    machine = describe("cpu")
    report = {"machine": machine, "fits": fits, "rows": [asdict(row) for row in rows]}
    texts = {
        "projected_cost.md": markdown(machine, fits, rows),
        "projected_cost.json": json.dumps(report, indent=1) + "\n",
    }
    for name, text in texts.items():
        with replacing(folder / name) as path:
            path.write_text(text, encoding="utf-8")
    print(texts["projected_cost.md"])


if __name__ == "__main__":
    main()
