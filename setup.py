"""Builds csrc/ into one compiled torch extension, ``d2ls_fast/_C.so``; everything else is in pyproject.toml.

Environment:
    D2LS_FAST_EXTENSION=auto|1|0   compile the extension: where possible (default), always (else fail), or never.
    D2LS_FAST_CUDA=auto|1|0        the same for its CUDA part.
    TORCH_CUDA_ARCH_LIST           GPU architectures of the CUDA part.
    MAX_JOBS                       compiler processes at a time (default: all cores).

The binary uses the stable ABI of torch 2.10 and no Python API at all, so that it outlives upgrades of both.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
TORCH_TARGET = "0x020a000000000000"  # 2.10.0, the oldest torch that the binary loads under


def choice(name: str) -> str:
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        sys.exit(f"error: {name}={value}: expected auto, 1 or 0")
    return value


def why_not_compile() -> str:
    """The reason why the extension cannot be compiled here, or nothing."""
    try:
        import torch
    except ImportError:
        return "torch is not importable at build time (install torch first and use pip install --no-build-isolation)"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10):
        return f"torch {torch.__version__} is older than 2.10"
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None and shutil.which("g++") is None:
        return "no C++ compiler was found (install g++ or clang++, or set CXX)"
    return ""


def extension_arguments() -> dict[str, object]:
    wanted = choice("D2LS_FAST_EXTENSION")
    if wanted == "0":
        return {}
    reason = why_not_compile()
    if reason:
        if wanted == "1":
            sys.exit(f"error: D2LS_FAST_EXTENSION=1 but {reason}")
        print(
            f"d2ls_fast: building WITHOUT compiled kernels: {reason}. PyTorch and Triton serve instead.",
            file=sys.stderr,
        )
        return {}

    from torch.utils.cpp_extension import BuildExtension, CppExtension

    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp"))
    extension = CppExtension(
        "d2ls_fast._C",
        sources,
        include_dirs=[str(ROOT / "csrc")],
        depends=[str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h")],
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET), ("D2LS_TORCH_TARGET", '"2.10"')],
        extra_compile_args=["-O3", "-std=c++17", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Wno-psabi"],
        extra_link_args=["-Wl,-s", "-Wl,--as-needed"] if sys.platform == "linux" else [],
        py_limited_api=True,
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)},
        # The file links no Python at all, so one wheel serves every version from 3.10 on.
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


choice("D2LS_FAST_CUDA")
setup(**extension_arguments())
