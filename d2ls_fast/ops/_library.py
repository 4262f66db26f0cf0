"""How an operator becomes known to PyTorch: schema, meta kernel, device kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("d2ls_fast", "DEF")


def define(
    name: str,
    signature: str,
    *,
    fake: Callable[..., Any],
    cpu: Callable[..., Any] | None,
    cuda: Callable[..., Any] | None,
) -> None:
    """Register ``d2ls_fast::name``.

    ``cpu`` is None where the compiled extension brings the kernel itself; a missing device raises PyTorch's own
    "not implemented for backend" error.
    """
    LIBRARY.define(name + signature, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    torch.library.register_fake(f"d2ls_fast::{name}", fake, lib=LIBRARY)
    if cpu is not None:
        LIBRARY.impl(name, cpu, "CPU")
    if cuda is not None:
        LIBRARY.impl(name, cuda, "CUDA")


def operator_of(name: str, backend: str) -> Any:
    """``d2ls_fast::name`` as ``backend`` computes it: the operator itself, or the one that is that back end's alone."""
    return getattr(torch.ops.d2ls_fast, f"{name}_{backend}" if backend in ("triton", "cuda") else name)


def with_autocast(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The tensors in the dtype that autocast asks for on their device; as they are without autocast or for float64."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t if t.dtype is torch.float64 else t.to(dtype) for t in tensors)
