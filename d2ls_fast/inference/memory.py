"""Windows and batches that keep the mapping of a scene under a stated amount of memory."""

from __future__ import annotations

import re
import resource
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from d2ls_fast.data.raster import BLOCK_CACHE
from d2ls_fast.errors import UserError
from d2ls_fast.inference.mosaic import IN_MEMORY
from d2ls_fast.inference.predictor import Predictor

WINDOWS = (768, 512, 384, 256, 192, 128)
MARGIN = 1.3  # scratch memory of kernels and what the allocator keeps, over the tensors that are alive
PRODUCTS = 224 * 2**20  # bytes: what compressing rasters and drawing a picture of 2048 x 2048 take
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_size(text: str, option: str) -> int:
    """Bytes of ``1500MB``, ``1.5G``, ``2 GiB``, ...; units are powers of 1024.

    Raises:
        UserError: not such a text; ``option`` is named.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*)\s*([kmgt]?)i?b?\s*", text.lower())
    if match is None:
        raise UserError(f"{option} {text}: not an amount of memory; give one like 1.5GB or 800MB")
    return int(float(match[1]) * UNITS[match[2]])


def resident() -> int:
    """Bytes of this process in memory."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that operators inside the block make; ``peak`` is the most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._holders: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._hold(tensor, given)
        return result

    def _hold(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._holders:
            if key in given:  # a view of what was there before
                return
            self._holders[key] = 0
            self.live += size
            self.peak = max(self.peak, self.live)
        self._holders[key] += 1
        weakref.finalize(tensor, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if self._holders[key] == 0:
            del self._holders[key]
            self.live -= size


def model_bytes(predictor: Predictor, window: int) -> int:
    """Bytes that the model takes for one window of that side, found by running it once; 0 where it runs on a GPU."""
    if predictor.device.type != "cpu":
        return 0
    images = torch.zeros(1, len(predictor.card.mean), window, window)
    with LiveTensors() as tensors:
        predictor.probabilities(images)
    return tensors.peak


def fit(
    predictor: Predictor,
    scenes: Sequence[tuple[int, int]],
    bytes_per_pixel: int,
    held: int,
    limit: int,
    fixed: bool,
) -> None:
    """Set the ``predictor``'s window and batch so that mapping any of ``scenes`` stays under ``limit`` bytes.

    What is left over may hold pixels between the passes of a scene's dictionary.
    Of several that fit, the largest window is taken, and then the largest batch; neither becomes larger than it is.

    Args:
        scenes: heights and widths.
        bytes_per_pixel: of the finished map.
        held: bytes of a scene that is read whole.
        limit: bytes of the whole process, on the host.
        fixed: leave the window as it is.

    Raises:
        UserError: nothing fits; says what would.
    """
    bands, classes = len(predictor.card.mean), len(predictor.card.classes)
    width = max(width for _, width in scenes) if scenes else 0
    sides = [predictor.window] if fixed else [predictor.window, *(s for s in WINDOWS if s < predictor.window)]
    least = 0
    for side in sides:
        pixels = side * side
        model = model_bytes(predictor, side)
        base = (
            resident() + held + PRODUCTS + BLOCK_CACHE + 2 * IN_MEMORY
        )  # after a run: the libraries have taken what they keep
        for batch in sorted({max(1, predictor.batch >> halvings) for halvings in range(8)}, reverse=True):
            # Rows of the finished map: those being filled, those being written to the spool and to the products.
            rows = 5 * side * width * bytes_per_pixel / predictor.card.scale
            reading = (3 * batch) * pixels * bands * 8
            sums = 3 * pixels * classes * 8
            least = int(base + MARGIN * (model * batch + rows + reading + sums))
            if least <= limit:
                predictor.resize(side, min(predictor.overlap, side // 2), batch)
                predictor.feature_memory = limit - least
                return
    raise UserError(
        f"--max-memory {limit / 2**30:.2f}GB: these scenes need at least {least / 2**30 + 0.01:.2f}GB with windows of "
        f"{sides[-1]} pixels; give as much, or a smaller --window"
    )
