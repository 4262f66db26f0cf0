"""Loads the compiled libraries, if they were built, and remembers why not otherwise.

They register their kernels with the PyTorch dispatcher through the stable ABI when they are loaded; nothing is called
through Python. One binary serves every torch from 2.10 on. The CUDA part is a library of its own, so that the CPU part
loads where there is no CUDA runtime.
"""

from __future__ import annotations

from pathlib import Path

import torch


def _load(name: str, missing: str) -> str:
    """Why the library cannot be used, or nothing."""
    file = Path(__file__).with_name(name)
    if not file.exists():
        return missing
    try:
        torch.ops.load_library(str(file))
    except OSError as error:
        return f"{name} does not load: {' '.join(str(error).split())}"
    return ""


WHY_NOT: str = _load("_C.so", "the compiled extension was not built (pip install again with a C++ compiler)")
LOADED: bool = not WHY_NOT
# Whether the folded pass multiplies bfloat16 as it is, twice as fast as float32.
BF16_PRODUCTS: bool = LOADED and "isa=avx512_bf16 " in torch.ops.d2ls_fast.build_info()
WHY_NOT_CUDA: str = _load("_C_cuda.so", "the CUDA part was not built (pip install again with nvcc and a CUDA torch)")
CUDA_LOADED: bool = not WHY_NOT_CUDA
