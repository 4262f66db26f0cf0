"""What ``import d2ls_fast`` brings, and what it leaves until it is asked for."""

from __future__ import annotations

import subprocess
import sys

import d2ls_fast

HEAVY = ("timm", "torchvision", "lightning", "rasterio", "matplotlib", "triton")


def test_layers_need_pytorch_alone() -> None:
    """People who put the layers into their own model need none of the rest, and the import stays quick."""
    code = f"import sys, d2ls_fast; print([name for name in {HEAVY} if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    assert all(getattr(d2ls_fast, name) is not None for name in d2ls_fast.__all__)
    assert set(d2ls_fast.__all__) <= set(dir(d2ls_fast))
    assert not hasattr(d2ls_fast, "no_such_name")
