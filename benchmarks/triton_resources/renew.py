"""Compiling what the table on file lacks, in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import triton

from d2ls_fast.benchmarks.triton_resources.compile import Resources, compiled
from d2ls_fast.benchmarks.triton_resources.table import Table, configurations, load


def standing(folder: Path) -> dict[str, Resources]:
    """By digest: the rows on file, where they are of this Triton."""
    try:
        table = load(folder)
    except FileNotFoundError:
        return {}
    return {row.digest: row for row in table.rows} if table.triton == triton.__version__ else {}


def compiled_beside(kept: Mapping[str, Resources], jobs: int) -> dict[str, Resources]:
    """By digest: one compilation for each that the configurations have and ``kept`` lacks."""
    numbers = {c.digest: i for i, c in enumerate(configurations()) if c.digest not in kept}
    rows: dict[str, Resources] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=max(1, min(jobs, len(numbers))), mp_context=context) as pool:
        for row in pool.map(_compile, numbers.values()):
            rows[row.digest] = row
            name = " ".join(str(part) for part in row.identity)
            print(f"{len(rows)}/{len(numbers)} {name} {row.problem}", flush=True)
    return rows


def assembled(rows: Mapping[str, Resources]) -> Table:
    """The table, from the resources of every digest."""
    return Table(
        triton.__version__,
        tuple(replace(rows[c.digest], identity=c.identity, hot=c.hot) for c in configurations()),
    )


def _compile(number: int) -> Resources:
    """By number, because a Triton kernel cannot be sent to another process."""
    return compiled(configurations()[number])
