"""Builds csrc/ into compiled torch libraries: ``d2ls_fast/_C.so`` (CPU) and, with nvcc, ``d2ls_fast/_C_cuda.so``.

Everything else is in pyproject.toml. Environment:
    D2LS_FAST_EXTENSION=auto|1|0   the CPU part: where possible (default), always (else fail), or never.
    D2LS_FAST_CUDA=auto|1|0        the same for the CUDA part.
    D2LS_FAST_SANITIZE=1           the CPU part with address and undefined-behaviour checks; see `make sanitize`.
    TORCH_CUDA_ARCH_LIST           GPU architectures, default "8.0;9.0a;10.0" (without 10.0 before CUDA 12.8).
    CUDA_HOME                      folder of the CUDA toolkit, the one that holds include/.
    MAX_JOBS                       compiler processes at a time (default: all cores).

The binaries use the stable ABI of torch 2.10 and no Python API at all, so that they outlive upgrades of both.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
TORCH_TARGET = "0x020a000000000000"  # 2.10.0, the oldest torch that the binaries load under


def choice(name: str) -> str:
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        sys.exit(f"error: {name}={value}: expected auto, 1 or 0")
    return value


def wanted(name: str, part: str, reason: str) -> bool:
    """Whether to build a part; says so when it steps aside, and stops when it was demanded and cannot be built."""
    setting = choice(name)
    if setting == "0":
        return False
    if reason and setting == "1":
        sys.exit(f"error: {name}=1 but {reason}")
    if reason:
        print(f"d2ls_fast: building WITHOUT the {part}: {reason}.", file=sys.stderr)
    return not reason


def why_no_extension() -> str:
    """The reason why nothing can be compiled here, or nothing."""
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


def find_cuda_home() -> Path | None:
    """The toolkit's own folder: an nvcc on PATH may be a wrapper elsewhere, so the headers decide."""
    candidates = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = shutil.which("nvcc")
    candidates += [Path(nvcc).resolve().parents[1]] if nvcc else []
    candidates += [Path("/usr/local/cuda")]
    for folder in candidates:
        if (folder / "include" / "cuda_runtime_api.h").is_file() and (folder / "bin" / "nvcc").is_file():
            return folder
    return None


def why_no_cuda(home: Path | None) -> str:
    """The reason why the CUDA part cannot be compiled here, or nothing."""
    import torch

    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if home is None:
        return "no CUDA toolkit with nvcc and headers was found (set CUDA_HOME)"
    major = toolkit_version(home)[0]
    if major != int(torch.version.cuda.split(".")[0]):
        return f"the toolkit in {home} is CUDA {major}, this torch was built with {torch.version.cuda}"
    return ""


def toolkit_version(home: Path) -> tuple[int, int]:
    header = (home / "include" / "cuda_runtime_api.h").read_text(errors="replace")
    found = re.search(r"#define CUDART_VERSION\s+(\d+)", header)
    number = int(found[1]) if found else 0
    return number // 1000, number % 1000 // 10


def default_architectures(home: Path) -> str:
    """What nvcc of this toolkit knows of the kinds of GPU that have kernels."""
    return "8.0;9.0a;10.0" if toolkit_version(home) >= (12, 8) else "8.0;9.0a"


def build_arguments() -> dict[str, object]:
    if not wanted("D2LS_FAST_EXTENSION", "compiled kernels (PyTorch and Triton serve instead)", why_no_extension()):
        return {}
    home = find_cuda_home()
    with_cuda = wanted("D2LS_FAST_CUDA", "CUDA part (Triton serves GPUs instead)", why_no_cuda(home))
    if with_cuda and home:
        os.environ["CUDA_HOME"] = str(home)  # read when torch.utils.cpp_extension is imported
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_architectures(home))

    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    common = {
        "include_dirs": [str(ROOT / "csrc")],
        "define_macros": [("TORCH_TARGET_VERSION", TORCH_TARGET), ("D2LS_TORCH_TARGET", '"2.10"')],
        "extra_link_args": ["-Wl,-s", "-Wl,--as-needed"] if sys.platform == "linux" else [],
        "py_limited_api": True,
    }
    flags = ["-O3", "-std=c++17", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Wno-psabi"]
    if os.environ.get("D2LS_FAST_SANITIZE") == "1":
        sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        flags += ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-wrapv", *sanitizers]
        common["extra_link_args"] = sanitizers
    extensions = [
        CppExtension("d2ls_fast._C", files("*.cpp"), depends=files("*.h"), extra_compile_args=flags, **common)
    ]
    if with_cuda:
        nvcc = ["-O3", "-std=c++17", "--threads=2"]
        arguments = {"cxx": flags, "nvcc": nvcc}
        headers = [*files("*.h"), *files("*.cuh")]
        extensions.append(
            CUDAExtension("d2ls_fast._C_cuda", files("*.cu"), depends=headers, extra_compile_args=arguments, **common)
        )
    return {
        "ext_modules": extensions,
        "cmdclass": {"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)},
        # The files link no Python at all, so one wheel serves every version from 3.10 on.
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


def files(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob(pattern))


setup(**build_arguments())
