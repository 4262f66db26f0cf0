"""What is installed, what was built, and what is used: ``python -m d2ls_fast.info`` or ``d2ls-fast info``."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from d2ls_fast import __version__, _extension
from d2ls_fast.backends import backends, current


def facts() -> dict[str, str]:
    """The lines of the report, in order."""
    lines = {
        "d2ls_fast": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'}, {torch.get_num_threads()} threads)",
    }
    for package in ("triton", "timm", "torchvision", "lightning", "rasterio", "numpy"):
        lines[package] = _version(package)
    lines["extension"] = torch.ops.d2ls_fast.build_info() if _extension.LOADED else f"none: {_extension.WHY_NOT}"
    cuda = f"none: {_extension.WHY_NOT_CUDA}"
    if _extension.CUDA_LOADED:
        cuda = f"{torch.ops.d2ls_fast.cuda_build_info()} (not yet run on a GPU: D2LS_FAST_BACKEND=cuda asks for it)"
    lines["CUDA part"] = cuda
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines["GPUs"] = ", ".join(gpus) or "none seen"
    for name, state in backends().items():
        lines[f"back end {name}"] = state
    forced = [f"{key}={os.environ[key]}" for key in ("D2LS_FAST_BACKEND", "D2LS_FAST_ISA") if key in os.environ]
    lines["in force"] = f"{current()}{' (' + ', '.join(forced) + ')' if forced else ''}"
    return lines


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def show() -> None:
    """Print the report, one fact a line."""
    lines = facts()
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    show()
