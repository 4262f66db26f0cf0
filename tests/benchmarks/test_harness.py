"""The harness: refuses wrong results, times all variants, reports against the first."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from d2ls_fast.backends import _PREFERENCE
from d2ls_fast.benchmarks import harness, machine, results
from d2ls_fast.benchmarks.cases import LEVELS, Sizes
from d2ls_fast.benchmarks.cases.common import standard_variants
from d2ls_fast.benchmarks.harness import Case, Limits, Variant, WrongResult
from d2ls_fast.benchmarks.memory import peak_extra

LIMITS = Limits(copy_bandwidth=1e9, matrix_rate=1e9)
SMALL = Sizes(size=64, num_classes=3, stages=2, backbone="resnet18")


def case(*variants: Variant, bytes_moved: int = 0) -> Case:
    truth = torch.arange(4.0, dtype=torch.float64)
    return Case("doubling", "n=4", lambda: [truth], variants, tolerance=1e-6, bytes_moved=bytes_moved)


def right() -> list[torch.Tensor]:
    return [torch.arange(4.0)]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: [torch.arange(4.0) + 1e-3],
        lambda: [torch.full((4,), float("nan"))],
        lambda: [torch.arange(4.0), torch.zeros(1)],
    ],
)
def test_a_wrong_variant_is_never_timed(wrong) -> None:
    with pytest.raises(WrongResult, match="doubling, broken"):
        harness.run_case(case(Variant("reference", right), Variant("broken", wrong)), "cpu", LIMITS, 3)


def test_a_wrong_dispensable_variant_is_left_out_and_named() -> None:
    wrong = Variant("compiled", lambda: [torch.full((4,), torch.inf)], dispensable=True)
    rows = harness.run_case(case(Variant("reference", right), wrong, Variant("fused", right)), "cpu", LIMITS, 3)
    assert [row.variant for row in rows] == ["reference", "fused"]
    assert "wrong, not timed" in results.markdown(harness.Report({}, rows))
    assert rows[0].facts == {"wrong, not timed": "compiled"}


def test_a_failing_dispensable_variant_is_left_out_with_its_reason() -> None:
    def fails() -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("no room\nfor it")

    rows = harness.run_case(
        case(Variant("reference", right), Variant("graph", fails, dispensable=True)), "cpu", LIMITS, 3
    )
    assert [row.variant for row in rows] == ["reference"]
    assert rows[0].facts == {"failed, not timed": "graph (OutOfMemoryError: no room for it)"}
    with pytest.raises(torch.OutOfMemoryError):
        harness.run_case(case(Variant("reference", right), Variant("fused", fails)), "cpu", LIMITS, 3)


def test_on_a_gpu_either_kernels_and_graphs_are_variants() -> None:
    preferred: list[tuple[str, ...]] = []

    def compute() -> list[torch.Tensor]:
        preferred.append(_PREFERENCE["cuda"])
        return right()

    before = _PREFERENCE["cuda"]
    variants = {v.name: v for v in standard_variants(compute, "cuda", inference=True)}
    fused = ["fused", "fused, triton", "fused, cuda"]
    graphs = ["reference, CUDA graph", *(f"{name}, CUDA graph" for name in fused)]
    assert {*fused, *graphs} < set(variants) and not variants["fused"].dispensable
    assert all(variants[name].dispensable for name in [*fused[1:], *graphs])
    for name in fused:
        variants[name].run()
    assert preferred == [before, ("triton", "triton"), ("cuda", "triton")] and _PREFERENCE["cuda"] == before
    assert not any("graph" in v.name for v in standard_variants(compute, "cuda"))


def test_rows_refer_to_the_first_variant() -> None:
    rows = harness.run_case(
        case(
            Variant("reference", right),
            Variant("floor", lambda: [], checked=False),
            Variant("fused", right),
            bytes_moved=8,
        ),
        "cpu",
        LIMITS,
        5,
    )
    assert [row.variant for row in rows] == ["reference", "floor", "fused"]
    assert rows[0].speedup == 1.0 and rows[1].error is None and rows[2].error == 0.0
    assert all(row.p20_ms <= row.median_ms <= row.p80_ms for row in rows)
    assert rows[2].speedup == pytest.approx(rows[0].median_ms / rows[2].median_ms)
    assert rows[0].copy_bandwidth_percent is None
    assert rows[2].copy_bandwidth_percent == pytest.approx(100 * 8 / (rows[2].median_ms * 1e-3) / 1e9)


def test_peak_extra_memory_sees_what_is_freed_again() -> None:
    def allocate() -> None:
        torch.ones(16 * 2**20)  # 64 MiB, touched and freed

    held = peak_extra(allocate, "cpu")
    assert held is None or 60e6 < held < 80e6


def test_machine_facts_and_limits() -> None:
    facts = machine.describe("cpu")
    assert facts["torch"] == torch.__version__ and "extension" in facts
    assert machine.copy_bandwidth("cpu", megabytes=8) > 0
    assert machine.matrix_rate("cpu", torch.float32, size=128) > 0


def test_results_are_written_whole(tmp_path: Path) -> None:
    report = harness.Report({"torch": torch.__version__})
    report.rows = harness.run_cases(
        [case(Variant("reference", right), Variant("fused", right))], "cpu", LIMITS, 3, Console(quiet=True)
    )
    paths = results.write(report, tmp_path / "made" / "speed")
    assert [path.name for path in paths] == ["speed.json", "speed.md", "speed.png"]
    assert json.loads(paths[0].read_text())["rows"][1]["variant"] == "fused"
    assert "| fused |" in paths[1].read_text()
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    assert len(results.tables(report)) == 1


def test_a_sweep_is_drawn_over_what_differs(tmp_path: Path) -> None:
    settings = ["B=1 256x256 K=7", "B=1 512x512 K=7"]
    cases = [dataclasses.replace(case(Variant("reference", right)), setting=setting) for setting in settings]
    report = harness.Report({}, [row for swept in cases for row in harness.run_case(swept, "cpu", LIMITS, 3)])
    axis = Figure().subplots()
    results._lines(axis, report.rows)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["256x256", "512x512"]
    results.plot(report, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("level", ["operator", "head", "model", "train", "patch", "sam"])
def test_every_case_of_a_level_is_right(level: str) -> None:
    """Compiled variants take minutes here; the eager ones show that the cases are set up rightly."""
    for built in LEVELS[level](SMALL):
        truth = [t.double() for t in built.truth()]
        for variant in built.variants:
            if variant.checked and "compiled" not in variant.name:
                assert harness._error(variant, truth, built, built.tolerance) <= built.tolerance
