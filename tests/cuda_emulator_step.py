"""dictionary_step by the CUDA kernels on the CPU."""

from __future__ import annotations

import ctypes

import torch
from cuda_emulator import TYPES, Device, _address, _checked, library
from torch import Tensor

from d2ls_fast.ops.dictionary_step import Entries, Look, Step, Update


def _pointers(*names: str) -> list[tuple[str, type[ctypes.c_void_p]]]:
    return [(name, ctypes.c_void_p) for name in names]


class StepShape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("heads", "entries", "channels", "inner")),
        ("eps", ctypes.c_float),
    ]


class UpdateWeights(ctypes.Structure):
    _fields_ = _pointers(*Update._fields)


class EntriesWeights(ctypes.Structure):
    _fields_ = _pointers(*Entries._fields)


class LookWeights(ctypes.Structure):
    _fields_ = _pointers(*Look._fields[:3])


class StepCall(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("batch", ctypes.c_int64),
        ("shape", StepShape),
        *_pointers("dictionary", "position", "context"),
        ("update", UpdateWeights),
        ("entries", EntriesWeights),
        ("look", LookWeights),
        *_pointers("updated", "query", "key", "value", "key_bias"),
    ]


def weights(group: type[ctypes.Structure], tensors: dict[str, Tensor], part: str) -> ctypes.Structure:
    """The part's tensors, ``part.field``, or nulls where it is absent."""
    given = (tensors.get(f"{part}.{field[0]}") for field in group._fields_)
    return group(*(None if tensor is None else _address(tensor) for tensor in given))


def dictionary_step(
    tensors: dict[str, Tensor], heads: int, dtype: torch.dtype, device: Device, eps: float = 1e-5
) -> dict[str, Tensor]:
    """Every result that is not empty, by name; they start as NaN. ``tensors`` as step_calls.inputs has them."""
    batch, entries, channels = tensors["dictionary"].shape
    inner = next(t for name, t in tensors.items() if name.endswith("value_weight") or name == "look.query_weight")
    rows = (batch, heads * entries, channels)
    results: dict[str, Tensor] = {}

    def empty(name: str, part: str, size: tuple[int, ...], of: torch.dtype) -> int | None:
        if not any(given.startswith(part) for given in tensors):
            return None
        results[name] = torch.full(size, float("nan"), dtype=of)
        return _address(results[name])

    call = StepCall(
        TYPES[dtype], batch, StepShape(heads, entries, channels, inner.shape[0], eps),
        *(_address(tensors[name]) for name in ("dictionary", "position")),
        _address(tensors["context"]) if "context" in tensors else None,
        weights(UpdateWeights, tensors, "update"),
        weights(EntriesWeights, tensors, "entries"),
        weights(LookWeights, tensors, "look"),
        empty("dictionary", "update", (batch, entries, channels), torch.float32),
        empty("query", "look", rows, dtype),
        *(empty(name, "entries", rows, dtype) for name in ("key", "value")),
        empty("key_bias", "entries", rows[:2], torch.float32),
    )  # fmt: skip
    _checked(library().d2ls_emulate_dictionary_step, device, call)
    return {name: results[name] for name in Step._fields if name in results}
