"""Running the Triton kernels' cases in the interpreter: each file of them in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

Report = dict[str, dict[str, list[float]]]
"""Case -> quantity -> [error, allowed error]."""


def run_cases(child: Path) -> Report:
    """What the script ``child`` prints as its last line, run with Triton's interpreter."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run([sys.executable, str(child)], capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr[-4000:]
    report: Report = json.loads(finished.stdout.splitlines()[-1])
    return report


def assert_within(quantities: dict[str, list[float]]) -> None:
    """Hold every quantity of a case to its allowed error."""
    for name, (error, allowed) in quantities.items():
        assert error <= allowed, f"{name}: error {error:.2e} exceeds {allowed:.2e}"
