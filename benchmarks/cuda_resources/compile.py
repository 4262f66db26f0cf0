"""The CUDA kernels compiled for every architecture, and what their machine code takes."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path

from rich.progress import track

from d2ls_fast.benchmarks.cuda_resources.table import SECOND_STAGES, Plan, Row, Table

SOURCES = Path(__file__).resolve().parents[2] / "csrc"
FILES = (
    "attend",
    "refine",
    "refine_attend",
    "classify",
    "classify_gradients",
    "segmentation_sums",
    "segmentation_gradients",
    "nce_sums",
    "nce_gradients",
    "dictionary_step",
    "interact",
    "attend_backward",
    "refine_backward",
)
TARGETS = {"sm_80": "compute_80", "sm_90a": "compute_90a", "sm_100": "compute_100"}
ARCHITECTURES = {"Ampere": "sm_80", "Hopper": "sm_90a", "Blackwell": "sm_100"}
TYPES = {"Bf16": "bf16", "Fp16": "fp16", "RoundedFloat32": "tf32", "Float32": "fp32"}
Key = tuple[str, str, str, int, str]
Taken = tuple[int, int, dict[str, int]]


def digest() -> str:
    """Sixteen hexadecimal digits of the kernels' sources; comments and layout do not count."""
    paths = [
        p for p in (SOURCES / "cuda").rglob("*") if p.suffix in (".cu", ".cuh", ".h") and "emulator" not in p.parts
    ]
    words = []
    for path in sorted(p for p in paths if not p.name.startswith("registration")):
        text = re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))
        words += [str(path.relative_to(SOURCES)), *text.split()]
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]


def plans() -> list[Plan]:
    """Every kernel of the present sources, from a program made of them."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "plans"
        source = SOURCES / "cuda" / "emulator" / "plans.cc"
        compiler = os.environ.get("CXX", "g++")
        _run(
            compiler, "-std=c++17", "-Wno-unknown-pragmas", f"-I{SOURCES}", "-x", "c++", str(source), "-o", str(program)
        )
        lines = _run(str(program)).splitlines()
    found = []
    for line in lines:
        kernel, kind, architecture, channels, variant, *counts = line.split()
        found.append(Plan(kernel, kind, architecture, int(channels), variant, *map(int, counts)))
    return found


def compiled() -> Table:
    """Compile everything and read the machine code."""
    from d2ls_fast.benchmarks.triton_resources.compile import NVIDIA_TOOLS  # of the wheel: the toolkit may lack them

    home = os.environ.get("CUDA_HOME")
    nvcc = str(Path(home) / "bin" / "nvcc") if home else "nvcc"
    release = re.search(r"release ([\d.]+)", _run(nvcc, "--version"))
    read: dict[Key, Taken] = {}
    jobs = [(name, target) for name in FILES for target in TARGETS]
    with tempfile.TemporaryDirectory() as folder:
        for name, target in track(jobs, description="compiling"):
            cubin = str(Path(folder) / "kernels.cubin")
            code = f"-gencode=arch={TARGETS[target]},code={target}"
            source = str(SOURCES / "cuda" / f"{name}.cu")
            _run(nvcc, "-O3", "-std=c++17", f"-I{SOURCES}", code, "-cubin", source, "-o", cubin)
            tool = str(NVIDIA_TOOLS / "cuobjdump")
            read |= parsed(_run(tool, "--dump-resource-usage", cubin), _run(tool, "-sass", cubin), target)
    rows = [Row(plan, *read[_key(plan)]) for plan in plans()]
    return Table(release[1] if release else "unknown", digest(), tuple(rows))


def parsed(usage: str, sass: str, target: str) -> dict[Key, Taken]:
    """(registers, stack, matrix instructions) by kernel, from what cuobjdump prints."""
    instructions: dict[str, dict[str, int]] = {}
    for part in sass.split("Function : ")[1:]:
        counts: dict[str, int] = {}
        for word in re.findall(r"\b(HGMMA|HMMA)\b", part):
            counts[word] = counts.get(word, 0) + 1
        instructions[part.split()[0]] = counts
    found = {}
    for symbol, registers, stack in re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", usage):
        key = _kernel_of(symbol, target)
        if key is not None and key[2] == target:  # those of other architectures are empty
            found[key] = (int(registers), int(stack), instructions[symbol])
    return found


# Mangled names of attend_chunk<AttendPlan<Half<Bf16>, Hopper, 256>, Hopper>, classify_pixels_kernel<Bf16, 16, true>.
_PLANNED = re.compile(
    r"\d+(attend_chunk|refine_chunk|refine_attend_chunk|attend_backward_chunk|refine_backward_chunk|undo_norm_chunk"
    r"|interact_kernel)INS0_\d+\w+?Plan"
    r"INS0_(?:4HalfINS0_4(Bf16|Fp16)EEE|\d+(RoundedFloat32|Float32)E)"
    r"NS0_\d(Ampere|Hopper|Blackwell)ELi(\d+)E(?:Lb([01])E)?"
)
_COMBINE = re.compile(r"\d+(combine_parts_kernel)I(?:NS0_4(Bf16|Fp16)E|f)(?:NS0_4(Bf16|Fp16)E|S\d?_|f)E")
_STEP = re.compile(r"\d+(dictionary_step_kernel)I(?:NS0_4(Bf16|Fp16)E|f)E")
_CLASSIFY = re.compile(r"\d+(classify_pixels_kernel)I(?:NS0_4(Bf16|Fp16)E|f)Li(\d+)ELb([01])E")

_GRADIENTS = re.compile(r"\d+(classify_gradients_kernel)I(?:NS0_4(Bf16|Fp16)E|f)Li(\d+)ENS0_\d+(Given|Loss)GradientE")
_SUMS = re.compile(r"\d+(segmentation_sums_kernel)I(?:NS0_4(Bf16|Fp16)E|f)Li(\d+)EE")
_NCE = re.compile(r"\d+(nce_sums_kernel|nce_gradients_kernel)I(?:NS0_4(Bf16|Fp16)E|f)E")


def _kernel_of(symbol: str, target: str) -> Key | None:
    if match := _PLANNED.search(symbol):
        kernel, half, single, architecture, channels, one_block = match.groups()
        variant = {None: "-", "0": "blocks", "1": "one-block"}[one_block]
        if kernel == "undo_norm_chunk":  # for several blocks of rows alone
            variant = "blocks"
        return kernel, TYPES[half or single], ARCHITECTURES[architecture], int(channels), variant
    if match := _COMBINE.search(symbol):
        kernel, of, to = match.groups()
        return kernel, TYPES[to or of or "Float32"], target, 256, "pixels" if of else "-"
    if match := _CLASSIFY.search(symbol):
        kernel, half, units, labels = match.groups()
        return kernel, TYPES[half or "Float32"], target, 16 * int(units), "labels" if labels == "1" else "logits"
    if match := _STEP.search(symbol):
        return match[1], TYPES[match[2] or "Float32"], target, 256, "-"
    if match := _GRADIENTS.search(symbol):
        kernel, half, units, source = match.groups()
        return kernel, TYPES[half or "Float32"], target, 16 * int(units), "loss" if source == "Loss" else "logits"
    if match := _SUMS.search(symbol):
        kernel, half, units = match.groups()
        return kernel, TYPES[half or "Float32"], target, 16 * int(units), "-"
    if match := _NCE.search(symbol):
        kernel, half = match.groups()
        return kernel, TYPES[half or "Float32"], target, 256, "-"
    for kernel in SECOND_STAGES:
        if kernel in symbol:
            return kernel, "fp32", target, 256, "-"
    return None


def _key(plan: Plan) -> Key:
    return plan.kernel, plan.type, plan.architecture, plan.channels, plan.variant


def _run(*command: str) -> str:
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{finished.stderr[-3000:]}")
    return finished.stdout
