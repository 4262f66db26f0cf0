"""The table of all CUDA kernels, and the two files that hold it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from d2ls_fast.files import replacing

FOLDER = Path(__file__).resolve().parents[1] / "results"
NAME = "cuda_resources"
SECOND_STAGES = ("merge_chunks", "sum_parts_kernel", "nce_merge_kernel")  # of sums over pixels
SHARED = {"sm_80": 163, "sm_90a": 227, "sm_100": 227}  # KiB that the blocks of an SM share


@dataclass(frozen=True)
class Plan:
    """A kernel as it is launched. ``blocks`` an SM, ``shared`` bytes a block."""

    kernel: str
    type: str
    architecture: str
    channels: int
    variant: str
    threads: int
    blocks: int
    shared: int

    @property
    def name(self) -> str:
        return f"{self.architecture} {self.kernel} {self.type} {self.channels} {self.variant}"

    @property
    def hot(self) -> bool:
        """Whether it must not spill: the kernels of the model in its usual precision."""
        return self.kernel in SECOND_STAGES or (self.type in ("bf16", "fp16") and self.variant != "blocks")

    @property
    def multiplies(self) -> bool:
        """Whether it uses matrix instructions."""
        without = ("classify", "segmentation", "nce", "dictionary_step", "combine_parts")
        return self.kernel not in SECOND_STAGES and not self.kernel.startswith(without)


@dataclass(frozen=True)
class Row:
    """What one kernel takes; ``registers`` and ``stack`` (bytes) are those of a thread."""

    plan: Plan
    registers: int
    stack: int
    matrix_instructions: dict[str, int]


@dataclass(frozen=True)
class Table:
    """Rows compiled with one nvcc from sources of one digest."""

    nvcc: str
    digest: str
    rows: tuple[Row, ...]


def load(folder: Path = FOLDER) -> Table:
    report = json.loads((folder / f"{NAME}.json").read_text(encoding="utf-8"))
    fields = Plan.__dataclass_fields__
    rows = [Row(plan=Plan(**{f: row.pop(f) for f in fields}), **row) for row in report.pop("rows")]
    return Table(rows=tuple(rows), **report)


def save(table: Table, folder: Path) -> None:
    flat: list[dict[str, Any]] = []
    for row in table.rows:
        values = asdict(row)
        flat.append(values.pop("plan") | values)
    lines = ",\n".join(json.dumps(row) for row in flat)
    head = f'{{"nvcc": {json.dumps(table.nvcc)}, "digest": "{table.digest}", "rows": [\n'
    for suffix, text in {"json": f"{head}{lines}\n]}}\n", "md": markdown(table)}.items():
        with replacing(folder / f"{NAME}.{suffix}") as path:
            path.write_text(text, encoding="utf-8")


def markdown(table: Table) -> str:
    lines = [
        "# CUDA kernels: resources",
        "",
        f"Compiled with nvcc {table.nvcc}; renewed by `make resources-cuda`. {len(table.rows)} kernels, "
        f"{sum(row.plan.hot for row in table.rows)} of them hot (must not spill); "
        f"{sum(row.stack > 0 for row in table.rows)} spill. None has run on a GPU yet.",
        "",
        "C: channels that a kernel has room for. Registers and stack (spills, bytes) a thread, blocks an SM, shared "
        "memory in KiB a block, of what the blocks of an SM share. fp32 products are TF32 in three, tf32 in one; the "
        "shared memory of classify holds the class vectors.",
        "",
        "| architecture | kernel | type | C | variant | threads | blocks | hot | registers | stack | shared "
        "| matrix instructions |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table.rows:
        plan = row.plan
        instructions = ", ".join(f"{name} {count}" for name, count in sorted(row.matrix_instructions.items()))
        cells = [
            plan.architecture, plan.kernel, plan.type, plan.channels, plan.variant, plan.threads, plan.blocks,
            "hot" if plan.hot else "", row.registers, row.stack,
            f"{plan.shared / 1024:.1f} of {SHARED[plan.architecture]}", instructions,
        ]  # fmt: skip
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"
