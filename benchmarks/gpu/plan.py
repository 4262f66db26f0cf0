"""What is run on a machine with a GPU, in order of importance."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .steps import Step

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "gpu"
GROUPS = {
    "interaction": 75,
    "latency": 60,
    "head": 40,
    "contrast": 40,
    "model": 60,
    "train": 60,
    "backward": 120,
    "operators": 75,
}
"""Of measurements (see measure.py), with their limits in seconds; a GPU error ends the process of one alone."""

TESTS = (
    "tests/ops/test_every_backend.py",
    "tests/ops/test_interact.py",
    "tests/ops/test_interact_labels.py",
    "tests/nn/test_resident.py",
    "tests/models/test_on_the_device.py",
    "tests/models/test_graphed.py",
    "tests/models/test_capturable.py",
    "tests/backends",
)
MAIN = "interact,attend,refine,refine_attend,classify_labels"
SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "ComputeWorkloadAnalysis", "Occupancy", "LaunchStats")


@dataclass(frozen=True)
class Gpu:
    """What PyTorch says of the GPU, and whether pytest can share its tests out to processes."""

    name: str
    capability: tuple[int, int]
    parallel_tests: bool = False


def plan(python: str, gpu: Gpu, output: Path) -> list[Step]:
    """All steps. What is built lies in ``build/gpu/lib``, from where every other step takes the package."""
    major, minor = gpu.capability
    # Kernels that use wgmma, and their successors, are for one architecture and no other.
    architecture = f"{major}.{minor}" + ("a" if major == 9 else "")
    cores = os.cpu_count() or 1
    # The folder of the sources, which the package would be taken from, is kept off the path.
    installed = {
        "PYTHONPATH": str(BUILD / "lib"),
        "PYTHONUNBUFFERED": "1",
        "TRITON_CACHE_DIR": str(BUILD / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(BUILD / "inductor"),
    }

    def step(name: str, limit: float, *command: str, needs: str = "", **environment: str) -> Step:
        return Step(name, command, limit, BUILD, {**installed, **environment}, needs)

    build = [python, "setup.py", "-q", "build", "--build-base", str(BUILD), "--build-lib", str(BUILD / "lib")]
    environment = {"TORCH_CUDA_ARCH_LIST": architecture, "MAX_JOBS": str(cores)}
    operators = [python, str(ROOT / "tests" / "run_operators.py")]
    pytest = [python, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-o", "addopts=--import-mode=importlib"]
    # A line for every test as it ends: what ran out of time has told what failed.
    pytest += ["-v", "-p", "no:cacheprovider", "--tb=short"]
    if gpu.parallel_tests:
        pytest += ["-n", str(min(16, cores)), "--dist", "worksteal"]
    sanitizer = ["compute-sanitizer", "--error-exitcode", "1", "--print-limit", "20", "--tool"]
    kernels = "regex:interact|attend|refine|classify|labels"
    counters = ["ncu", "--target-processes", "all", "--clock-control", "none", "--kernel-name", kernels]
    counters += ["--launch-count", "24", "--csv", "--page", "details"]
    counters += [part for section in SECTIONS for part in ("--section", section)]
    return [
        Step("build", build, 150, ROOT, environment),
        step("info", 40, python, "-m", "d2ls_fast.info"),
        step("tests", 200, *pytest, *(str(ROOT / test) for test in TESTS)),
        *(
            step(f"bench:{group}", limit, python, "-m", "d2ls_fast.benchmarks.gpu.measure", group, str(output))
            for group, limit in GROUPS.items()
        ),
        # PyTorch's allocator would hide what is read or written beyond a tensor.
        *(
            step(
                f"sanitize:{tool}", 90, *sanitizer, tool, *operators,
                needs=sanitizer[0], PYTORCH_NO_CUDA_MEMORY_CACHING="1",
            )
            for tool in ("memcheck", "racecheck")
        ),
        step("ncu", 75, *counters, *operators, "--only", MAIN, "--large", needs=counters[0]),
    ]  # fmt: skip
