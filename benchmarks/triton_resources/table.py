"""The table of all shipped configurations: what belongs into it, what is on file, and the two files themselves."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from d2ls_fast.benchmarks.triton_resources import attend, classify, contrast, pyramid, refine, step
from d2ls_fast.benchmarks.triton_resources.compile import Configuration, Identity, Resources
from d2ls_fast.files import replacing
from d2ls_fast.kernels import configs

FAMILIES = (attend, refine, step, classify, pyramid, contrast)
FOLDER = Path(__file__).parents[1] / "results"
NAME = "triton_resources"


@dataclass(frozen=True)
class Table:
    """Rows compiled with one version of Triton."""

    triton: str
    rows: tuple[Resources, ...]


@functools.cache
def configurations() -> tuple[Configuration, ...]:
    """Every architecture, kernel and kind of the present sources."""
    return tuple(
        configuration
        for architecture in configs.ARCHITECTURES
        for family in FAMILIES
        for configuration in family.configurations(architecture)
    )


def load(folder: Path = FOLDER) -> Table:
    report = json.loads((folder / f"{NAME}.json").read_text(encoding="utf-8"))
    rows = []
    for row in report["rows"]:
        identity = Identity(*(row.pop(field) for field in Identity._fields))
        rows.append(Resources(identity=identity, **row))
    return Table(report["triton"], tuple(rows))


def save(table: Table, folder: Path) -> None:
    flat = [row.identity._asdict() | {k: v for k, v in asdict(row).items() if k != "identity"} for row in table.rows]
    lines = ",\n".join(json.dumps(row) for row in flat)
    texts = {
        "json": f'{{"triton": {json.dumps(table.triton)}, "rows": [\n{lines}\n]}}\n',
        "md": markdown(table),
    }
    for suffix, text in texts.items():
        with replacing(folder / f"{NAME}.{suffix}") as path:
            path.write_text(text, encoding="utf-8")


def markdown(table: Table) -> str:
    problems = [row for row in table.rows if row.problem]
    lines = [
        "# Triton kernels: resources of every shipped configuration",
        "",
        f"Compiled ahead of time with Triton {table.triton}; renewed by `make resources`. {len(table.rows)} "
        f"configurations, {sum(row.hot for row in table.rows)} of them hot (must not spill); {len(problems)} spill, "
        f"{sum(row.must_not_ship for row in table.rows)} must not ship.",
        "",
        f"{attend.ROWS} query rows; refine with {refine.HEADS} heads of {refine.ENTRIES} entries, or of "
        f"{refine.MANY_ENTRIES} where heads are in blocks; {classify.CLASSES} classes. Block: J x N x C (x V); of step "
        "tokens x channels, of pyramid pixels x channels. Registers and stack (spills, bytes) a thread, shared memory "
        "in KiB a program.",
        "",
        "| architecture | kernel | kind | C | variant | block | warps | stages | hot | registers | stack | shared "
        "| matrix instructions | problem |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table.rows:
        instructions = ", ".join(f"{name} {count}" for name, count in row.matrix_instructions.items())
        cells = [
            *row.identity, "hot" if row.hot else "", row.registers, row.stack,
            f"{row.shared / 1024:.0f} of {row.shared_limit // 1024}", instructions, row.problem,
        ]  # fmt: skip
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"
