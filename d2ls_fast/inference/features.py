"""The pixels of a scene's windows between one pass over the scene and the next."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from d2ls_fast.files import unwritable

Features = Literal["auto", "memory", "disk", "recompute"]
Place = tuple[int, int]
"""Row and column of a window among the windows of a scene."""
MEMORY = 2**30
"""Bytes that a scene's features may take in memory, where no budget is stated."""
DISK = 64 * 2**30
"""Bytes that they may take on disk at most."""


class Kept(NamedTuple):
    """Pixels ``[1, N, C]``, and how many updates by the dictionary they have been through."""

    pixels: Tensor
    updates: int


class FeatureStore:
    """Keeps the pixels of windows in memory or on disk, or keeps nothing, so that they are computed anew.

    With ``auto`` the size of the first window's pixels, times the number of windows, decides: in memory if that is
    within ``memory``; else on disk if it is within :data:`DISK` and half of what is free there; else they are not kept.
    What comes back is what was put in, bit for bit.

    Args:
        features: where to keep them.
        windows: how many there will be.
        memory: bytes.
        folder: for files, one for each window; what is in it is deleted, and all of it when the store is closed.
        processes: how many keep as much on the same disk.
    """

    def __init__(self, features: Features, windows: int, memory: int, folder: Path, processes: int = 1) -> None:
        self.features = features
        self._windows, self._memory, self._folder, self._processes = windows, memory, folder, processes
        self._updates: dict[Place, int] = {}
        self._tensors: dict[Place, Tensor] = {}
        self._dtype, self._shape = torch.float32, torch.Size()  # the same for all windows
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        self.close = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def __contains__(self, place: Place) -> bool:
        return place in self._updates

    def put(self, place: Place, kept: Kept) -> None:
        """Keep the pixels of window ``place``, instead of what was kept of it.

        Raises:
            UserError: the disk is full.
        """
        if self.features == "auto":
            self.features = self._choose(kept.pixels)
        if self.features == "recompute":
            return
        if self.features == "memory":
            self._tensors[place] = kept.pixels.cpu()
        else:
            self._dtype, self._shape = kept.pixels.dtype, kept.pixels.shape
            content = kept.pixels.cpu().contiguous().flatten().view(torch.uint8)
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                content.numpy().tofile(self._file(place))
            except OSError as error:
                raise unwritable(self._folder, error) from None
        self._updates[place] = kept.updates

    def get(self, place: Place) -> Kept:
        """What was put last."""
        if self.features == "memory":
            return Kept(self._tensors[place], self._updates[place])
        content = torch.from_numpy(np.fromfile(self._file(place), np.uint8))
        return Kept(content.view(self._dtype).view(self._shape), self._updates[place])

    def _choose(self, pixels: Tensor) -> Features:
        needed = self._windows * pixels.numel() * pixels.element_size()
        if needed <= self._memory:
            return "memory"
        folder = next(each for each in self._folder.parents if each.exists())
        free = shutil.disk_usage(folder).free
        return "disk" if needed <= min(DISK, free // 2 // self._processes) else "recompute"

    def _file(self, place: Place) -> Path:
        return self._folder / "{}-{}.raw".format(*place)
