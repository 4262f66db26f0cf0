"""Compile every shipped Triton configuration ahead of time, without a GPU, and report what it takes.

For sm_80, sm_90, sm_100 and gfx942, and for the safe default on sm_80: registers, spilled bytes (stack), shared memory
and matrix instructions of every kernel, at C = 256 (512 where wide). Writes triton_resources.md and .json; exits 1 if
any of them does not fit or a hot one spills. Rows whose sources, tile and Triton version are unchanged are kept.

    python -m d2ls_fast.benchmarks.triton_resources [--output FOLDER] [--all] [--jobs N]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from d2ls_fast.benchmarks.triton_resources import table
from d2ls_fast.benchmarks.triton_resources.renew import assembled, compiled_beside, standing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=table.FOLDER)
    parser.add_argument("--all", action="store_true", help="compile unchanged configurations too")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    arguments = parser.parse_args()
    kept = {} if arguments.all else standing(arguments.output)
    fresh = compiled_beside(kept, arguments.jobs)
    result = assembled(kept | fresh)
    table.save(result, arguments.output)
    problems = [row for row in result.rows if row.problem]
    for row in problems:
        label = "MUST NOT SHIP" if row.must_not_ship else "slow"
        print(f"{label}: {' '.join(str(part) for part in row.identity)}: {row.problem}", file=sys.stderr)
    print(
        f"{len(result.rows)} configurations, {len(fresh)} binaries compiled, {len(problems)} with problems: "
        f"{arguments.output / (table.NAME + '.md')}"
    )
    return 1 if any(row.must_not_ship for row in problems) else 0


if __name__ == "__main__":
    raise SystemExit(main())
