"""Loads the compiled extension, if it was built, and remembers why not otherwise.

The extension registers its kernels with the PyTorch dispatcher through the stable ABI when it is loaded; nothing is
called through Python. One binary serves every torch from 2.10 on.
"""

from __future__ import annotations

from pathlib import Path

import torch

FILE = Path(__file__).with_name("_C.so")


def _load() -> str:
    if not FILE.exists():
        return "the compiled extension was not built (pip install again with a C++ compiler; see `d2ls-fast info`)"
    try:
        torch.ops.load_library(str(FILE))
    except OSError as error:
        return f"the compiled extension does not load: {' '.join(str(error).split())}"
    return ""


WHY_NOT: str = _load()
LOADED: bool = not WHY_NOT
