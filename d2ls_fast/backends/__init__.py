"""Which back end computes an operator, and why.

Automatic choice: the compiled kernels of the tensor's device where they can serve the call, otherwise the folded
PyTorch form, with one log line that says why. A back end forced by :func:`backend` or by the environment variable
``D2LS_FAST_BACKEND`` is used or the call fails: a forced choice never falls back.

The choice is process-wide. It is read as plain Python state, so torch.compile guards on it and recompiles when it
changes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from d2ls_fast.backends.base import Backend, Call, Support
from d2ls_fast.backends.native import Cpu, Cuda, Triton
from d2ls_fast.backends.plain import Reference, Torch
from d2ls_fast.errors import UserError

__all__ = ["Backend", "BackendError", "Call", "Support", "backend", "backends", "current", "preferring", "select"]

_logger = logging.getLogger("d2ls_fast")

_REGISTRY: dict[str, Backend] = {b.name: b for b in (Reference(), Torch(), Cpu(), Triton(), Cuda())}
_AVAILABLE: dict[str, Support] = {name: b.available() for name, b in _REGISTRY.items()}
# The CUDA kernels are right in their emulator and have not run on a GPU yet: until they have, only who asks gets them.
_PREFERENCE: dict[str, tuple[str, ...]] = {"cpu": ("cpu",), "cuda": ("triton",)}
_already_logged: set[tuple[str, str]] = set()


class BackendError(RuntimeError):
    """The back end asked for cannot serve the call; the message says why."""


def _checked(name: str, origin: str) -> str:
    if name != "auto" and name not in _REGISTRY:
        raise UserError(f"{origin}: unknown back end {name!r}; choose one of auto, {', '.join(_REGISTRY)}")
    return name


_current = _checked(os.environ.get("D2LS_FAST_BACKEND", "auto"), "D2LS_FAST_BACKEND")


def current() -> str:
    """The back end in force: ``"auto"`` unless one is forced."""
    return _current


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force a back end (``reference``, ``torch``, ``cpu``, ``triton``, ``cuda``) or return to ``auto`` inside a block.

    Raises:
        UserError: the name is unknown.
        BackendError: the back end is not available in this process.
    """
    global _current
    _checked(name, "backend()")
    if name != "auto" and not _AVAILABLE[name].ok:
        raise BackendError(f"back end {name!r} is not available: {_AVAILABLE[name].reason}")
    previous, _current = _current, name
    try:
        yield
    finally:
        _current = previous


@contextmanager
def preferring(device: str, *names: str) -> Iterator[None]:
    """Let ``auto`` try these back ends on ``device``, in this order, inside a block: to compare them."""
    previous = _PREFERENCE[device]
    _PREFERENCE[device] = tuple(names)
    try:
        yield
    finally:
        _PREFERENCE[device] = previous


def backends() -> dict[str, str]:
    """Every back end with ``"available"`` or the reason why it is not."""
    return {name: "available" if support.ok else support.reason for name, support in _AVAILABLE.items()}


def select(operator: str, tensor: torch.Tensor, entries: int = 0) -> str:
    """The name of the back end that computes ``operator`` on tensors like ``tensor``, whose last dimension is C.

    ``entries``: dictionary entries of a head, or class vectors, for operators with a softmax over them.

    Raises:
        BackendError: a forced back end cannot serve the call.
    """
    call = Call(operator, tensor.device.type, tensor.dtype, tensor.shape[-1], entries)
    if _current != "auto":
        support = _support(_current, call)
        if not support.ok:
            raise BackendError(f"back end {_current!r} cannot serve {operator}: {support.reason}")
        return _current
    reason = f"no kernels for device {call.device}"
    for name in _PREFERENCE.get(call.device, ()):
        support = _support(name, call)
        if support.ok:
            return name
        reason = f"{name}: {support.reason}"
    if not torch.compiler.is_compiling():
        _log_once(operator, reason)
    return "torch"


def _support(name: str, call: Call) -> Support:
    available = _AVAILABLE[name]
    return _REGISTRY[name].supports(call) if available.ok else available


def _log_once(operator: str, reason: str) -> None:
    if (operator, reason) not in _already_logged:
        _already_logged.add((operator, reason))
        _logger.info("%s runs in plain PyTorch (%s)", operator, reason)
