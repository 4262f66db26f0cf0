"""The Triton kernels of ``fuse_pyramid``: right in the interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2ls_fast.kernels import configs
from d2ls_fast.kernels.fuse_pyramid import fuse_pyramid_forward

CHILD = Path(__file__).with_name("pyramid_cases.py")
# The names of pyramid_cases.CASES, which this process must not import: it would switch Triton to its interpreter.
CASES = [
    "one pixel",
    "one level",
    "fp32",
    "fp32, channels last",
    "fp32, two launches",
    "fp32, larger coarse level",
    "bf16",
    "bf16, model width",
    "fp16",
    "repeat",
    "extreme",
]


@pytest.fixture(scope="module")
def report() -> dict[str, dict[str, list[float]]]:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    child = subprocess.run([sys.executable, str(CHILD)], capture_output=True, text=True, env=environment)
    assert child.returncode == 0, child.stderr[-4000:]
    result: dict[str, dict[str, list[float]]] = json.loads(child.stdout.splitlines()[-1])
    return result


def test_every_case_ran(report: dict[str, dict[str, list[float]]]) -> None:
    assert list(report) == CASES


@pytest.mark.parametrize("case", CASES)
def test_interpreted(report: dict[str, dict[str, list[float]]], case: str) -> None:
    for name, (error, allowed) in report[case].items():
        assert error <= allowed, f"{name}: error {error:.2e} exceeds {allowed:.2e}"


def test_every_architecture_has_every_tile() -> None:
    for name, table in configs.ARCHITECTURES.items():
        assert set(table.pyramid) == {(k, kind) for k in configs.PYRAMID_KERNELS for kind in ("half", "ieee")}, name


def test_refuses_shapes_and_dtypes() -> None:
    maps, weights = [torch.zeros(1, 3, 4, 4), torch.zeros(1, 5, 2, 2)], [torch.zeros(16, 3), torch.zeros(16, 5)]
    bias = torch.zeros(16)
    with pytest.raises(ValueError, match="fuse_pyramid: shapes do not match"):
        fuse_pyramid_forward(maps, weights[::-1], bias)
    with pytest.raises(ValueError, match=r"fuse_pyramid: features must be \[B, c, h, w\]"):
        fuse_pyramid_forward([maps[0][0], maps[1]], weights, bias)
    with pytest.raises(TypeError, match="one dtype"):
        fuse_pyramid_forward(maps, [w.half() for w in weights], bias)
