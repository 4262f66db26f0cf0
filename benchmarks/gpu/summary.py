"""One page of what was done on a GPU: the aims, the counters, and what became of every step."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from . import table
from .steps import Outcome

STEPS = "steps.json"
COUNTERS = (
    "Duration",
    "DRAM Throughput",
    "Compute (SM) Throughput",
    "L2 Hit Rate",
    "Achieved Occupancy",
    "Registers Per Thread",
)


def add(folder: Path, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Outcomes of this run and of earlier ones with the same folder, whose other steps stay."""
    file = folder / STEPS
    known = {each["name"]: Outcome(**each) for each in json.loads(file.read_text())} if file.is_file() else {}
    known |= {outcome.name: outcome for outcome in outcomes}
    file.write_text(json.dumps([asdict(outcome) for outcome in known.values()], indent=1) + "\n")
    return list(known.values())


def write(folder: Path, gpu: str, outcomes: Sequence[Outcome]) -> Path:
    """Write ``summary.md`` from what lies in ``folder``."""
    lines = [f"# {gpu}", "", *_machine(folder), "## Aims", ""]
    lines += ["bfloat16, K = 7, L = 3, C = 256; medians, cold L2 cache, variants in turns.", ""]
    lines += [*table.lines(folder), ""]
    parts = {
        "Kernels by back end": table.kernels(folder),
        "Left out": table.left_out(folder),
        "Counters (ncu)": counters_of(folder / "ncu.log"),
    }
    for title, part in parts.items():
        if part:
            lines += [f"## {title}", "", *part, ""]
    lines += ["## Steps", "", "| step | result | seconds | last line |", "|---|---|---|---|"]
    said = [(each, each.said.replace("|", "/")) for each in outcomes]
    lines += [f"| {each.name} | {each.status} | {each.seconds:.0f} | {text} |" for each, text in said]
    path = folder / "summary.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _machine(folder: Path) -> list[str]:
    for file in sorted(folder.glob("bench-*.json")):
        facts = json.loads(file.read_text())["machine"]
        return [*(f"{key}: {value}  " for key, value in facts.items()), ""]
    return []


def counters_of(log: Path) -> list[str]:
    """The counters of every profiled launch, from ncu's CSV among what else was printed."""
    if not log.is_file():
        return []
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith('"')]
    launches: dict[tuple[str, str], dict[str, str]] = {}
    for row in csv.DictReader(lines):
        if row.get("Metric Name") in COUNTERS:
            kernel = row["Kernel Name"].replace("(anonymous namespace)::", "").removeprefix("void ")
            name = (row["ID"], kernel.split("(")[0][:60])
            launches.setdefault(name, {})[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}"
    if not launches:
        return []
    head = ["| kernel | " + " | ".join(COUNTERS) + " |", "|" + "---|" * (len(COUNTERS) + 1)]
    body = [[name, *(found.get(each, "-") for each in COUNTERS)] for (_, name), found in launches.items()]
    return head + ["| " + " | ".join(cells) + " |" for cells in body]
