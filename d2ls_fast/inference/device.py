"""Where a model runs, in what precision, and what to do when there is no more room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from d2ls_fast.errors import UserError

Result = TypeVar("Result")


def find_device(name: str | torch.device) -> torch.device:
    """The device called ``name``; ``auto`` is a GPU if there is one.

    Raises:
        UserError: it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name}: PyTorch sees no GPU here; use cpu")
    return device


@contextmanager
def computing(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """No gradients, and products of type ``dtype``."""
    mixed = dtype != torch.float32
    with torch.inference_mode(), torch.autocast(device.type, dtype if mixed else None, mixed):
        yield


def in_parts(run: Callable[[Tensor], Result], images: Tensor, smaller: Callable[[int], int]) -> list[Result]:
    """``run`` with all ``images``, or where the device has no room for that, with parts of them.

    Args:
        smaller: how many images to try where so many were too many; 0 where nothing is left to try.

    Raises:
        UserError: there is no room for a single one.
    """
    try:
        return [run(images)]
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
    count = smaller(len(images))
    if count == 0:
        size = " x ".join(map(str, images.shape[-2:]))
        raise UserError(f"the device ran out of memory with one window of {size} pixels; give a smaller --window")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what was freed must be free for larger pieces too
    return [each for part in images.split(count) for each in in_parts(run, part, smaller)]


def _out_of_memory(error: Exception) -> bool:
    # The CPU's allocator has no exception of its own.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
