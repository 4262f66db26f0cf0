"""pytest-benchmark entries of the operators: ``python -m pytest tests/benchmarks --benchmark-only``.

They show one machine's times at a glance; ratios against the baselines come from ``d2ls-fast bench``.
"""

from __future__ import annotations

from typing import Any

import pytest

from d2ls_fast.benchmarks.cases import LEVELS, Sizes


@pytest.mark.parametrize("level", ["operator", "head"])
@pytest.mark.parametrize("variant", ["reference eager", "folded eager", "fused"])
def test_forward(benchmark: Any, level: str, variant: str) -> None:
    built = LEVELS[level](Sizes(size=256))[0]
    benchmark.group = built.name
    run = {v.name: v.run for v in built.variants}[variant]
    assert all(result.isfinite().all() for result in benchmark(run))
