"""What the figures were measured on: the machine, the versions, and the machine's own measured limits."""

from __future__ import annotations

import datetime
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from d2ls_fast import __version__, _extension


def describe(device: str) -> dict[str, Any]:
    """Versions, processor, threads and date; nothing that identifies a host."""
    facts: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "d2ls_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "extension": torch.ops.d2ls_fast.build_info() if _extension.LOADED else _extension.WHY_NOT,
    }
    if device == "cuda":
        gpu = torch.cuda.get_device_properties()
        facts["gpu"] = f"{gpu.name}, {gpu.multi_processor_count} multiprocessors, {gpu.total_memory / 2**30:.0f} GiB"
        facts["cuda"] = torch.version.cuda
        facts["cuda part"] = (
            torch.ops.d2ls_fast.cuda_build_info() if _extension.CUDA_LOADED else _extension.WHY_NOT_CUDA
        )
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {os.cpu_count()} cores seen" if names else platform.machine()


def copy_bandwidth(device: str, megabytes: int | None = None) -> float:
    """Bytes a second, read and write together, of the best of several plain copies."""
    megabytes = megabytes or (2048 if device == "cuda" else 256)
    source = torch.empty(megabytes * 2**20 // 4, device=device).fill_(1.0)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def matrix_rate(device: str, dtype: torch.dtype, size: int | None = None) -> float:
    """Multiply-adds counted as two operations, a second, of the best of several square products."""
    size = size or (8192 if device == "cuda" else 2048)
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / _best(lambda: a @ b, device)


def _best(run: Any, device: str, repeats: int = 5) -> float:
    times = []
    for _ in range(repeats + 1):
        if device == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        else:
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
    return min(times[1:])
