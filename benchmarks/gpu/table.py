"""The aims on a GPU, and whether the recorded results hold them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
AUTOMATIC = ("fused", "fused, CUDA graph")
"""The variants that are judged: what a user gets who chooses no back end."""
NAMED = ("fused, triton", "fused, cuda")
"""The variants with the kernels of one back end wherever it has any."""


@dataclass(frozen=True)
class Aim:
    """What a case is to reach against a baseline.

    ``measure``: ``speed`` (times as fast as the baseline, at least ``bound``), ``memory`` (share of the baseline's
    extra memory, both without the ``results`` MiB that either returns, at most), ``copy`` (percent of the measured copy
    bandwidth, at least), ``microseconds`` (at most), ``rest`` (percent of the time that the baseline, a part of the
    whole, leaves, at most).
    """

    shown: str
    group: str
    case: str
    measure: str
    bound: float
    baseline: str = "reference eager"
    results: float = 0.0

    @property
    def aim(self) -> str:
        return ("at least " if self.measure in ("speed", "copy") else "at most ") + self.told(self.bound)

    def told(self, value: float) -> str:
        units = {"speed": "x", "memory": "x", "copy": " %", "microseconds": " us", "rest": " %"}
        digits = 3 if self.measure == "memory" else 1
        return f"{value:.{digits}f}".rstrip("0").rstrip(".") + units[self.measure]

    def held(self, value: float) -> bool:
        return value >= self.bound if self.measure in ("speed", "copy") else value <= self.bound


_LARGE, _LATENCY, _MODEL = "8 x 1024x1024", "1 x 512x512", "ConvNeXt-B"
_BOTH = "interaction forward + backward"
_COMPILED, _GRAPH = "reference compiled", "reference, CUDA graph"
_NCE = "nce forward + backward"
# The gradient of the pixels, which every way of computing the loss gives back: 8 x 256^2 x 256 in bfloat16.
_NCE_RESULTS = 256.0
AIMS = (
    Aim(f"interaction forward, {_LARGE}", "interaction", "interaction forward", "speed", 15),
    Aim(f"interaction forward, {_LARGE}", "interaction", "interaction forward", "speed", 5, _COMPILED),
    Aim(f"interaction forward, {_LARGE}", "interaction", "interaction forward", "copy", 75, "copy bandwidth"),
    Aim(f"{_BOTH}, {_LARGE}", "backward", _BOTH, "speed", 10),
    Aim(f"{_BOTH}, {_LARGE}", "backward", _BOTH, "speed", 4, _COMPILED),
    Aim(f"{_BOTH}, {_LARGE}, memory", "backward", _BOTH, "memory", 1 / 8),
    Aim(f"head to labels, {_LARGE}", "head", "head to labels", "speed", 20),
    Aim(f"head to labels, {_LATENCY}", "latency", "head to labels", "speed", 12),
    Aim(f"head to labels, {_LATENCY}", "latency", "head to labels", "speed", 4, _GRAPH),
    Aim(f"interaction forward, {_LATENCY}", "latency", "interaction forward", "microseconds", 80, "-"),
    Aim(f"{_MODEL} predict, {_LARGE}", "model", "images to labels", "speed", 1.5),
    Aim(f"{_MODEL} predict, {_LARGE}, the head", "model", "images to labels", "rest", 5, "backbone alone"),
    Aim(f"training step {_MODEL}, 8 x 512x512", "train", "training step", "speed", 1.5),
    Aim(f"training step {_MODEL}, 8 x 512x512, memory", "train", "training step", "memory", 0.6),
    Aim(f"pixel-dictionary InfoNCE, {_LARGE}", "contrast", _NCE, "speed", 10),
    Aim(f"pixel-dictionary InfoNCE, {_LARGE}, memory", "contrast", _NCE, "memory", 1 / 50, results=_NCE_RESULTS),
)


def lines(folder: Path, aims: Sequence[Aim] = AIMS) -> list[str]:
    """The table in Markdown, from the ``bench-GROUP.json`` in ``folder``.

    Judged is what the automatic choice of the back end gives, and beside it stands what either back end's kernels do.
    """
    shown = ["| case | against | aim | measured | held | by back end |", "|---|---|---|---|---|---|"]
    for aim in aims:
        rows = _rows(folder, aim)
        reached = {row["variant"]: value for row in rows if (value := _value(aim, row, rows)) is not None}
        judged = [(value, name) for name, value in reached.items() if name in AUTOMATIC]
        others = {name.removeprefix("fused, "): v for name, v in reached.items() if name.startswith(NAMED)}
        told = "; ".join(f"{name} {aim.told(value)}" for name, value in others.items())
        measured, held = "not measured", "-"
        if judged:
            best = (max if aim.measure in ("speed", "copy") else min)(judged)
            measured, held = aim.told(best[0]), "yes" if aim.held(best[0]) else "**no**"
            measured += " (CUDA graph)" if "graph" in best[1] else ""
        shown.append(f"| {aim.shown} | {aim.baseline} | {aim.aim} | {measured} | {held} | {told or '-'} |")
    return shown


def kernels(folder: Path) -> list[str]:
    """Every operator by the kernels of either back end, in Markdown: what the automatic choice should follow."""
    file = folder / "bench-operators.json"
    if not file.is_file():
        return []
    shown = []
    rows: list[Row] = json.loads(file.read_text())["rows"]
    for case in dict.fromkeys(row["case"] for row in rows):
        found = [next((r for r in rows if (r["case"], r["variant"]) == (case, name)), None) for name in NAMED]
        timed = [row for row in found if row]
        if timed:
            times = [f"{row['median_ms']:.3f}" if row else "-" for row in found]
            best = min(timed, key=lambda row: float(row["median_ms"]))
            percent = [best["copy_bandwidth_percent"], best["matrix_rate_percent"]]
            shares = ["-" if each is None else f"{each:.0f}" for each in percent]
            shown.append("| " + " | ".join([case, *times, best["variant"].removeprefix("fused, "), *shares]) + " |")
    head = ["| operator | triton ms | cuda ms | faster | % copy | % matrix |", "|---|---|---|---|---|---|"]
    return head + shown if shown else []


def left_out(folder: Path) -> list[str]:
    """Variants that were wrong or failed, as the results name them."""
    told = []
    for file in sorted(folder.glob("bench-*.json")):
        for row in json.loads(file.read_text())["rows"]:
            told += [f"- {row['case']}: {what}: {names}" for what, names in row["facts"].items() if "not timed" in what]
    return told


def _rows(folder: Path, aim: Aim) -> list[Row]:
    file = folder / f"bench-{aim.group}.json"
    if not file.is_file():
        return []
    rows: list[Row] = json.loads(file.read_text())["rows"]
    exact = [row for row in rows if row["case"] == aim.case]
    return exact or [row for row in rows if aim.case in row["case"]]


def _value(aim: Aim, row: Row, rows: Sequence[Row]) -> float | None:
    """What ``row`` reaches, or None where it or its baseline was not measured."""
    if aim.measure == "copy":
        return row["copy_bandwidth_percent"]
    if aim.measure == "microseconds":
        return 1e3 * float(row["median_ms"])
    baseline = next((each for each in rows if each["variant"] == aim.baseline), None)
    if baseline is None:
        return None
    if aim.measure == "speed":
        return float(baseline["median_ms"] / row["median_ms"])
    if aim.measure == "rest":
        return max(0.0, float(100 * (1 - baseline["median_ms"] / row["median_ms"])))
    used, before = row["peak_extra_mb"], baseline["peak_extra_mb"]
    if used is None or before is None or before <= aim.results:
        return None
    return max(0.0, float(used - aim.results) / (before - aim.results))
