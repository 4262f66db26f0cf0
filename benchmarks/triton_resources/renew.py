"""Compiling what the table on file lacks, in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import triton

from d2ls_fast.benchmarks.triton_resources.compile import Identity, Resources, compiled
from d2ls_fast.benchmarks.triton_resources.table import configurations, load


def standing(folder: Path) -> dict[Identity, Resources]:
    """The rows on file that need no new compilation: of the same Triton and digest."""
    try:
        table = load(folder)
    except FileNotFoundError:
        return {}
    if table.triton != triton.__version__:
        return {}
    wanted = {configuration.identity: configuration.digest for configuration in configurations()}
    return {row.identity: row for row in table.rows if wanted.get(row.identity) == row.digest}


def renewed(wanted: Sequence[int], jobs: int) -> list[Resources]:
    """The resources of the configurations of these numbers."""
    rows: list[Resources] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=max(1, min(jobs, len(wanted))), mp_context=context) as pool:
        for row in pool.map(_compile, wanted):
            rows.append(row)
            print(f"{len(rows)}/{len(wanted)} {' '.join(str(part) for part in row.identity)} {row.problem}", flush=True)
    return rows


def _compile(number: int) -> Resources:
    """By number, because a Triton kernel cannot be sent to another process."""
    return compiled(configurations()[number])
