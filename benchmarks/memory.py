"""Peak extra memory of one call: what it holds at its highest beyond what was there before."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

_M_MMAP_THRESHOLD = -3


def peak_extra(run: Callable[[], object], device: str) -> int | None:
    """Bytes: on the GPU the allocator's own count, on a Linux CPU the process's high-water mark, scratch included.

    None where neither can be read. The CPU figure is meaningful from about a megabyte up.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not _return_freed_memory():
        return None
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark to what is resident now
    except OSError:
        return None
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _return_freed_memory() -> bool:
    """Make the C library give large freed blocks back at once, so that they do not hide the next call's need."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 65536)
        libc.malloc_trim(0)
    except (OSError, AttributeError):
        return False
    return True


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
