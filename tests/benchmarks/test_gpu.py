"""The GPU command where there is no GPU: its steps, its table, and the cases it would measure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from graph_stand_in import standing_in
from rich.console import Console

from d2ls_fast.benchmarks.cases.common import replayed
from d2ls_fast.benchmarks.gpu import __main__ as command
from d2ls_fast.benchmarks.gpu import summary, table
from d2ls_fast.benchmarks.gpu.measure import GROUPS, measure
from d2ls_fast.benchmarks.gpu.plan import GROUPS as PLANNED
from d2ls_fast.benchmarks.gpu.plan import TESTS, Gpu, plan
from d2ls_fast.benchmarks.gpu.steps import Outcome, Step, run

ROOT = Path(__file__).parents[2]


def step(tmp_path: Path, code: str, limit: float = 20.0, **more: Any) -> Step:
    return Step("a:b", [sys.executable, "-c", code], limit, tmp_path, **more)


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [("print('well'); print('=== ')", "done", "well"), ("print('bad'); exit(3)", "failed", "bad")],
)
def test_a_step_says_what_became_of_it(tmp_path: Path, code: str, status: str, said: str) -> None:
    outcome = run(step(tmp_path, code), tmp_path, 100)
    assert (outcome.status, outcome.said) == (status, said)
    assert "well" in (tmp_path / "a-b.log").read_text() or status == "failed"


def test_a_step_that_takes_too_long_ends_with_all_that_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\ntime.sleep(60)"
    )
    outcome = run(step(tmp_path, code, limit=2), tmp_path, 100)
    assert outcome.status == "out of time" and 2 <= outcome.seconds < 20
    child = Path("/proc", outcome.said, "stat")
    for _ in range(50):
        if not child.exists() or child.read_text().split(")")[1].split()[0] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("the step's child runs on")


def test_a_step_is_skipped_with_its_reason(tmp_path: Path) -> None:
    missing = run(step(tmp_path, "", needs="no-such-tool"), tmp_path, 100)
    assert (missing.status, missing.said) == ("skipped", "no-such-tool is not on the PATH")
    late = run(step(tmp_path, ""), tmp_path, 0.5)
    assert late.status == "skipped" and "STEPS=a" in late.said
    absent = run(Step("c", ["/no/such/program"], 5, tmp_path), tmp_path, 100)
    assert absent.status == "failed" and "/no/such/program: No such file" in absent.said


def row(case: str, variant: str, ms: float, **more: Any) -> dict[str, Any]:
    keys = ("peak_extra_mb", "copy_bandwidth_percent", "matrix_rate_percent")
    return {"case": case, "variant": variant, "median_ms": ms, "facts": {}, **dict.fromkeys(keys), **more}


def record(folder: Path, group: str, *rows: dict[str, Any]) -> None:
    (folder / f"bench-{group}.json").write_text(json.dumps({"machine": {"gpu": "H100"}, "rows": rows}))


def test_the_table_tells_what_is_held(tmp_path: Path) -> None:
    name = "interaction forward"
    record(
        tmp_path,
        "interaction",
        row(name, "reference eager", 30.0, facts={"failed, not timed": "fused, cuda (OutOfResources)"}),
        row(name, "reference compiled", 6.0),
        row(name, "fused", 1.5, copy_bandwidth_percent=60.0),
        row(name, "fused, triton", 1.6, copy_bandwidth_percent=58.0),
    )
    record(
        tmp_path,
        "backward",
        row(f"{name} + backward", "reference eager", 90.0, peak_extra_mb=8000.0),
        row(f"{name} + backward", "fused", 10.0, peak_extra_mb=900.0),
    )
    record(
        tmp_path,
        "latency",
        row("head to labels", "reference eager", 2.0),
        row("head to labels", "reference, CUDA graph", 0.6),
        row("head to labels", "fused", 0.4),
        row("head to labels", "fused, CUDA graph", 0.1),
        row(name, "fused, CUDA graph", 0.079),
    )
    record(
        tmp_path,
        "model",
        row("model b, images to labels", "fused", 20),
        row("model b, images to labels", "backbone alone", 19.4),
    )
    record(
        tmp_path,
        "contrast",
        row("nce forward + backward", "reference eager", 50.0, peak_extra_mb=5256.0),
        row("nce forward + backward", "fused", 6.0, peak_extra_mb=266.0),
    )
    lines = [line.strip("| ").split(" | ") for line in table.lines(tmp_path)[2:]]
    told = {(case, against): [measured, held] for case, against, _, measured, held, _ in lines}
    large, small, both = "8 x 1024x1024", "1 x 512x512", "interaction forward + backward"
    assert told[f"{name}, {large}", "reference eager"] == ["20x", "yes"]
    assert told[f"{name}, {large}", "reference compiled"] == ["4x", "**no**"]
    assert told[f"{name}, {large}", "copy bandwidth"] == ["60 %", "**no**"]
    assert told[f"{both}, {large}", "reference eager"] == ["9x", "**no**"]
    assert told[f"{both}, {large}", "reference compiled"] == ["not measured", "-"]
    assert told[f"{both}, {large}, memory", "reference eager"] == ["0.113x", "yes"]
    assert told[f"head to labels, {small}", "reference, CUDA graph"] == ["6x (CUDA graph)", "yes"]
    assert told[f"{name}, {small}", "-"] == ["79 us (CUDA graph)", "yes"]
    assert told[f"ConvNeXt-B predict, {large}, the head", "backbone alone"] == ["3 %", "yes"]
    assert told[f"pixel-dictionary InfoNCE, {large}, memory", "reference eager"] == ["0.002x", "yes"]
    assert told["training step ConvNeXt-B, 8 x 512x512", "reference eager"] == ["not measured", "-"]
    assert lines[0][-1] == "triton 18.8x"
    assert table.left_out(tmp_path) == [f"- {name}: failed, not timed: fused, cuda (OutOfResources)"]


def test_operators_are_shown_by_back_end(tmp_path: Path) -> None:
    assert table.kernels(tmp_path) == []
    fast = row("attend", "fused, cuda", 0.1, copy_bandwidth_percent=81.0)
    record(tmp_path, "operators", fast, row("attend", "fused, triton", 0.2), row("refine", "fused, triton", 0.3))
    assert table.kernels(tmp_path)[2:] == [
        "| attend | 0.200 | 0.100 | cuda | 81 | - |",
        "| refine | 0.300 | - | triton | - | - |",
    ]


NCU = """==PROF== Connected
"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","7","attend_chunk(float*, int)","GPU Speed Of Light Throughput","DRAM Throughput","%","71.50"
"0","7","attend_chunk(float*, int)","GPU Speed Of Light Throughput","Duration","us","88.1"
"0","7","attend_chunk(float*, int)","Launch Statistics","Block Size","","128"
"1","7","void d2ls::(anonymous namespace)::refine<1>(Arguments)","Occupancy","Achieved Occupancy","%","24.9"
"""


def test_the_summary_gathers_several_calls(tmp_path: Path) -> None:
    (tmp_path / "ncu.log").write_text(NCU)
    summary.add(tmp_path, [Outcome("build", "failed", 9.0, "no"), Outcome("tests", "done", 80.0, "9 | passed")])
    outcomes = summary.add(tmp_path, [Outcome("build", "done", 50.0, "yes")])
    text = summary.write(tmp_path, "NVIDIA H100", outcomes).read_text()
    assert "| build | done | 50 | yes |" in text and "| tests | done | 80 | 9 / passed |" in text
    assert "| attend_chunk | 88.1 us | 71.50 % | - | - | - | - |" in text
    assert "| d2ls::refine<1> | - | - | - | - | 24.9 % | - |" in text
    assert text.startswith("# NVIDIA H100") and "not measured" in text


def test_the_plan_fits_the_repository_and_the_time(tmp_path: Path) -> None:
    steps = plan("python", Gpu("NVIDIA H100", (9, 0), True), tmp_path)
    assert [each.kind for each in steps[:3]] == ["build", "info", "tests"]
    assert steps[0].environment["TORCH_CUDA_ARCH_LIST"] == "9.0a"
    assert plan("python", Gpu("A100", (8, 0)), tmp_path)[0].environment["TORCH_CUDA_ARCH_LIST"] == "8.0"
    assert all((ROOT / test).exists() for test in TESTS) and "-n" in steps[2].command
    assert list(PLANNED) == [each.name.split(":")[1] for each in steps if each.kind == "bench"]
    assert set(PLANNED) == set(GROUPS) and {aim.group for aim in table.AIMS} < set(GROUPS)
    chosen = command.selected(steps, "bench:latency, ncu")
    assert [each.name for each in chosen] == ["bench:latency", "ncu"]
    assert command.selected(steps, "") == steps
    with pytest.raises(command.Problem, match=r"STEPS=benhc: there is no step benhc; choose of build, info, tests"):
        command.selected(steps, "benhc")


def test_without_a_gpu_it_says_so_in_one_line_and_needs_nothing_but_python() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}
    ended = subprocess.run(["bash", ROOT / "benchmarks" / "gpu.sh"], capture_output=True, text=True, env=environment)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("error: PyTorch sees no GPU here; run this on a machine with one")
    code = "import sys, benchmarks.gpu.__main__; print({'torch', 'numpy', 'd2ls_fast', 'rich'} & set(sys.modules))"
    alone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert alone.stdout.strip() == "set()", alone.stderr


def called(tmp_path: Path, steps: str, **replaced: Any) -> int:
    """The exit status of the command with a GPU, and with these of its parts replaced."""
    parts = {"find_gpu": lambda: Gpu("NVIDIA H100", (9, 0)), "BUILD": tmp_path / "none", **replaced}
    with (
        patch.multiple(command, **parts),
        patch.dict(os.environ, {"STEPS": steps}),
        patch.object(sys, "argv", ["gpu", "--output", str(tmp_path / "results")]),
    ):
        return command.main()


def test_steps_without_a_build_are_refused(tmp_path: Path, capsys: Any) -> None:
    assert called(tmp_path, "tests") == 2
    assert "nothing has been built here; add build to STEPS" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_the_command_goes_on_and_tells_of_every_step(tmp_path: Path, capsys: Any) -> None:
    codes = {"build": "1/0", "info": "print('a fact')"}
    steps = [Step(name, [sys.executable, "-c", code], 20, tmp_path) for name, code in codes.items()]
    assert called(tmp_path, "", plan=lambda *_: steps) == 1
    text = (tmp_path / "results" / "summary.md").read_text()
    assert "| build | failed |" in text and "ZeroDivisionError" in text and "| info | done | 0 | a fact |" in text
    assert text.strip() in capsys.readouterr().out


def test_measuring_needs_no_library_that_reads_files() -> None:
    """A machine that has PyTorch may not have those of geodata or settings."""
    missing = dict.fromkeys(("rasterio", "pyogrio", "shapely", "pydantic", "lightning"))
    code = f"import sys; sys.modules |= {missing}; import d2ls_fast.benchmarks.gpu.measure"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_a_group_is_measured_but_for_a_case_that_fails(tmp_path: Path) -> None:
    group = GROUPS["latency"]

    def cases(sizes: Any) -> list[Any]:
        found = group.build(sizes)
        return [replace(found[0], truth=lambda: 1 / 0), found[-1]]

    small = replace(group.sizes, size=64, stages=1, device="cpu", dtype=torch.float32)
    console = Console(record=True, file=(tmp_path / "out").open("w"))
    written = measure("latency", replace(group, build=cases, sizes=small, repeats=3), tmp_path, console)
    assert [path.name for path in written] == ["bench-latency.json", "bench-latency.md", "bench-latency.png"]
    rows = json.loads(written[0].read_text())["rows"]
    assert {each["case"] for each in rows} == {"head to labels"}
    assert [each["variant"] for each in rows] == ["reference eager", "folded eager", "fused"]
    assert "NOT MEASURED: interaction forward: ZeroDivisionError" in console.export_text()
    assert "not measured" not in next(line for line in table.lines(tmp_path) if "1 x 512x512 | reference eager" in line)


def test_a_replayed_computation_gives_what_it_computes() -> None:
    value = torch.arange(3.0)
    with standing_in():
        run_again = replayed(lambda: [value * 2], "cpu")
        assert run_again()[0].tolist() == [0, 2, 4]
        value.add_(1)
        assert run_again()[0].tolist() == [2, 4, 6]
