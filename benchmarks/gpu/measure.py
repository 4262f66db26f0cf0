"""Measures one group of cases on the GPU, in the sizes of the aims, and writes ``bench-GROUP`` (.json, .md, .png).

python -m d2ls_fast.benchmarks.gpu.measure GROUP FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from rich.console import Console

from d2ls_fast.benchmarks import harness, machine, results
from d2ls_fast.benchmarks.cases import attend, bare, contrast, dictionary_step, fuse_pyramid, segmentation_loss
from d2ls_fast.benchmarks.cases.common import Sizes
from d2ls_fast.benchmarks.cases.head import head_cases
from d2ls_fast.benchmarks.cases.model import model_cases, train_cases
from d2ls_fast.benchmarks.harness import Case, Variant

_BF16 = {"dtype": torch.bfloat16, "device": "cuda"}
_LARGE = Sizes(8, 1024, **_BF16)  # type: ignore[arg-type]
_OPERATORS = (attend, bare, dictionary_step, fuse_pyramid, segmentation_loss)
_OPERATOR_NAMES = ("*operator only", "dictionary_step*", "fuse_pyramid*", "segmentation loss*")


@dataclass(frozen=True)
class Group:
    """Cases that are measured in one process, in these sizes: those whose name fits one of the patterns ``names``.

    ``without``: parts of the names of variants that are left out, as compiling or holding them takes too long or much.
    """

    build: Callable[[Sizes], Sequence[Case]]
    sizes: Sizes
    names: tuple[str, ...] = ("*",)
    repeats: int = 15
    without: tuple[str, ...] = ("folded compiled", "CUDA graph")


def _operators(sizes: Sizes) -> list[Case]:
    return [case for operator in _OPERATORS for case in operator.cases(sizes)]


GROUPS = {
    "interaction": Group(head_cases, _LARGE, ("interaction forward",)),
    "head": Group(head_cases, _LARGE, ("head to labels",)),
    "latency": Group(
        head_cases,
        Sizes(1, 512, **_BF16),  # type: ignore[arg-type]
        ("interaction forward", "head to labels"),
        repeats=50,
        without=("compiled",),
    ),
    "contrast": Group(contrast.cases, _LARGE, ("nce forward*",)),
    "model": Group(model_cases, replace(_LARGE, backbone="convnext_base"), without=("compiled", "CUDA graph")),
    "train": Group(train_cases, replace(_LARGE, size=512, backbone="convnext_base")),
    "backward": Group(head_cases, _LARGE, ("interaction forward + backward",)),
    "operators": Group(_operators, _LARGE, _OPERATOR_NAMES, repeats=10, without=("compiled", "CUDA graph")),
}


def chosen(group: Group) -> list[Case]:
    """The group's cases with the variants that are measured."""

    def kept(variant: Variant) -> bool:
        return not any(part in variant.name for part in group.without)

    cases = [case for case in group.build(group.sizes) if any(fnmatchcase(case.name, name) for name in group.names)]
    return [replace(case, variants=list(filter(kept, case.variants))) for case in cases]


def measure(name: str, group: Group, folder: Path, console: Console) -> list[Path]:
    """Run a group and write its results; a case whose baseline fails is told and left out."""
    device = group.sizes.device
    limits = harness.Limits(machine.copy_bandwidth(device), machine.matrix_rate(device, group.sizes.dtype))
    report = harness.Report(machine.describe(device))
    report.machine["copy bandwidth"] = f"{limits.copy_bandwidth / 1e9:.1f} GB/s"
    report.machine["matrix rate"] = f"{limits.matrix_rate / 1e12:.1f} TFLOP/s ({group.sizes.dtype}, square product)"
    written: list[Path] = []
    for case in chosen(group):
        try:
            rows = harness.run_cases([case], device, limits, group.repeats, console)
        except Exception as error:
            console.print(f"NOT MEASURED: {case.name}: {type(error).__name__}: {str(error)[:400]}", markup=False)
            continue
        report.rows += rows
        for table in results.tables(harness.Report({}, rows)):
            console.print(table)
        written = results.write(report, folder / f"bench-{name}")  # after every case: the next may end the process
    return written


def main() -> int:
    name, folder = sys.argv[1:]
    console = Console(width=140)
    written = measure(name, GROUPS[name], Path(folder), console)
    console.print(f"{len(written)} files written" if written else "nothing could be measured")
    return 0 if written else 1


if __name__ == "__main__":
    raise SystemExit(main())
