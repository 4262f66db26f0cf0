"""Run the steps and write one folder of results.

    STEPS="build tests" python -m benchmarks.gpu [--output FOLDER] [--minutes 8]

STEPS selects steps by name or kind (bench, bench:latency); without it all run. Results of earlier calls with the same
folder stay and are summed up together. Exits 1 where a step failed or ran out of time, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import summary
from .plan import BUILD, ROOT, Gpu, plan
from .steps import Outcome, Step, run

_ASK = """
import importlib.util, json, torch
gpu = torch.cuda.is_available()
print(json.dumps([torch.cuda.get_device_name(), torch.cuda.get_device_capability()] if gpu else None))
print(json.dumps(importlib.util.find_spec("xdist") is not None))
"""


class Problem(Exception):
    """What stands in the way, with its remedy."""


def find_gpu() -> Gpu:
    """The GPU that this Python's PyTorch sees."""
    asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True)
    if asked.returncode:
        reason = (asked.stderr.strip().splitlines() or ["it does not start"])[-1]
        raise Problem(f"{sys.executable} has no working PyTorch ({reason}); name another with PYTHON=...")
    found, parallel = (json.loads(line) for line in asked.stdout.splitlines()[-2:])
    if found is None:
        raise Problem("PyTorch sees no GPU here; run this on a machine with one (see docs/gpu.md)")
    return Gpu(found[0], (found[1][0], found[1][1]), parallel)


def selected(steps: Sequence[Step], wanted: str) -> list[Step]:
    """Those named in ``wanted`` by name or kind, in their own order; all where it is empty."""
    names = wanted.replace(",", " ").split()
    for name in names:
        if not any(name in (step.name, step.kind) for step in steps):
            known = ", ".join(dict.fromkeys(step.kind for step in steps))
            raise Problem(f"STEPS={wanted}: there is no step {name}; choose of {known}")
    return [step for step in steps if not names or step.name in names or step.kind in names]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu-NAME")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no further step starts")
    arguments = parser.parse_args()
    try:
        gpu = find_gpu()
        folder = (arguments.output or ROOT / "benchmarks" / "results" / f"gpu-{_slug(gpu.name)}").resolve()
        steps = selected(plan(sys.executable, gpu, folder), os.environ.get("STEPS", ""))
        if steps[0].name != "build" and not (BUILD / "lib").is_dir():
            raise Problem(f"{BUILD / 'lib'} is not there: nothing has been built here; add build to STEPS")
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    for each in (folder, BUILD):
        each.mkdir(parents=True, exist_ok=True)
    end, outcomes = time.monotonic() + 60 * arguments.minutes, list[Outcome]()
    for step in steps:
        print(f"{step.name} ...", end=" ", flush=True)
        outcome = run(step, folder, end - time.monotonic())
        print(f"{outcome.status}, {outcome.seconds:.0f} s: {outcome.said}", flush=True)
        outcomes.append(outcome)
        path = summary.write(folder, gpu.name, summary.add(folder, outcomes))
    print("\n" + path.read_text())
    return 1 if any(outcome.status in ("failed", "out of time") for outcome in outcomes) else 0


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    raise SystemExit(main())
