"""Compile the CUDA kernels ahead of time, without a GPU, and report what each takes.

For sm_80, sm_90a and sm_100: registers, spilled bytes (stack), shared memory and matrix instructions of every kernel,
from the machine code. Writes cuda_resources.md and .json; exits 1 if a hot kernel spills. Needs nvcc (CUDA_HOME or
PATH), g++ and Triton, whose wheel brings cuobjdump.

    python -m d2ls_fast.benchmarks.cuda_resources [--output FOLDER]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from d2ls_fast.benchmarks.cuda_resources import table
from d2ls_fast.benchmarks.cuda_resources.compile import compiled


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=table.FOLDER)
    arguments = parser.parse_args()
    result = compiled()
    table.save(result, arguments.output)
    problems = [row for row in result.rows if row.stack and row.plan.hot]
    for row in problems:
        print(f"MUST NOT SHIP: {row.plan.name}: spills, stack {row.stack} B", file=sys.stderr)
    print(f"{len(result.rows)} kernels, {len(problems)} with problems: {arguments.output / (table.NAME + '.md')}")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
