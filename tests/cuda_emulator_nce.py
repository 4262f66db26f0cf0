"""The CUDA kernels of nce_sums on the CPU, as cuda_emulator runs them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from cuda_emulator import TYPES, Device, _address, _checked, library
from torch import Tensor


class NceCall(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("batch", "pixels")),
        *((name, ctypes.c_int) for name in ("channels", "classes", "prototypes")),
        ("ignore_index", ctypes.c_int64),
        *((name, ctypes.c_bool) for name in ("rows", "columns")),
        *((name, ctypes.c_void_p) for name in ("x", "entries", "target")),
    ]


class NceSumsCall(ctypes.Structure):
    _fields_ = [
        ("of", NceCall),
        *((name, ctypes.c_void_p) for name in ("loss", "positive", "log_sum_exp", "count")),
    ]


class NceGradientsCall(ctypes.Structure):
    _fields_ = [
        ("of", NceCall),
        ("log_sum_exp", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("grad_loss", "grad_positive", "grad_log_sum_exp")),
        *((name, ctypes.c_void_p) for name in ("grad_x", "grad_entries")),
    ]


@dataclass(frozen=True)
class Case:
    """The arguments of nce_sums."""

    pixels: Tensor
    entries: Tensor
    target: Tensor
    prototypes: int = 1
    ignore_index: int = 255
    rows: bool = True
    columns: bool = True

    @property
    def classes(self) -> int:
        return self.entries.shape[1] // self.prototypes

    def call(self) -> NceCall:
        batch, count, channels = self.pixels.shape
        return NceCall(
            TYPES[self.pixels.dtype], batch, count, channels, self.classes, self.prototypes, self.ignore_index,
            self.rows, self.columns, *map(_address, (self.pixels, self.entries, self.target)),
        )  # fmt: skip


def nce_sums(case: Case, device: Device) -> list[Tensor]:
    """loss, positive, log_sum_exp and count by the CUDA kernels."""
    sums = [torch.full((len(case.pixels), n), float("nan")) for n in (*(case.classes,) * 3, case.classes + 1)]
    _checked(library().d2ls_emulate_nce_sums, device, NceSumsCall(case.call(), *map(_address, sums)))
    return sums


def nce_gradients(case: Case, log_sum_exp: Tensor, given: list[Tensor], device: Device) -> list[Tensor]:
    """Gradients of pixels and entries for those of the first three sums."""
    results = [torch.full_like(t, float("nan")) for t in (case.pixels, case.entries)]
    call = NceGradientsCall(case.call(), *map(_address, (log_sum_exp, *given, *results)))
    _checked(library().d2ls_emulate_nce_gradients, device, call)
    return results
