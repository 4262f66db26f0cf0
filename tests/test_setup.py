"""setup.py: what it builds, and what it says when it cannot."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

ROOT = Path(__file__).parents[1]


def setup(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


def test_unknown_choice_is_refused() -> None:
    finished = setup({"D2LS_FAST_EXTENSION": "yes"}, "--version")
    assert finished.returncode != 0
    assert "D2LS_FAST_EXTENSION=yes: expected auto, 1 or 0" in finished.stderr


@pytest.mark.parametrize(("value", "status"), [("auto", 0), ("1", 1)])
def test_without_a_compiler(value: str, status: int, tmp_path: Path) -> None:
    """auto steps aside and says so; 1 is an error."""
    finished = setup({"D2LS_FAST_EXTENSION": value, "CXX": "no-such-compiler", "PATH": str(tmp_path)}, "--version")
    assert finished.returncode == status, finished.stderr
    assert "no C++ compiler was found" in finished.stderr


@pytest.mark.parametrize(
    ("number", "architectures"), [(12060, "8.0;9.0a"), (12080, "8.0;9.0a;10.0"), (13000, "8.0;9.0a;10.0")]
)
def test_only_architectures_that_the_toolkit_knows(number: int, architectures: str, tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda_runtime_api.h").write_text(f"#define CUDART_VERSION  {number}\n")
    with patch("setuptools.setup"), patch.dict(os.environ, {"D2LS_FAST_EXTENSION": "0"}):
        functions = runpy.run_path(str(ROOT / "setup.py"))
    assert functions["default_architectures"](tmp_path) == architectures
