"""The back ends made of our own kernels: C++ for the CPU, Triton and CUDA for the GPU."""

from __future__ import annotations

import importlib.util
import os

import torch

from d2ls_fast import _extension
from d2ls_fast.backends.base import Call, Support

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TRITON_OPERATORS = ("attend", "refine", "refine_attend")
_TRITON_ENTRIES = 64  # the softmax over a head's entries is one register tile
_CPU_OPERATORS = (
    "attend",
    "attend_projected",
    "refine",
    "refine_attend",
    "refine_projected",
    "classify",
    "classify_labels",
)


def _dtype_support(call: Call) -> Support:
    if call.dtype in _KERNEL_DTYPES:
        return Support(True)
    return Support(False, f"the kernels take float32, bfloat16 and float16, not {call.dtype}")


class Cpu:
    """C++ kernels of the compiled extension; the instruction set is chosen at run time."""

    name = "cpu"

    def available(self) -> Support:
        if _extension.LOADED:
            return Support(True)
        return Support(False, _extension.WHY_NOT)

    def supports(self, call: Call) -> Support:
        if call.operator not in _CPU_OPERATORS:
            return Support(False, f"no C++ kernel for {call.operator}")
        if call.device != "cpu":
            return Support(False, f"the tensors are on {call.device}, this back end works on cpu")
        return _dtype_support(call)


class Triton:
    """Triton kernels: any GPU Triton compiles for, or its interpreter on CPU tensors (TRITON_INTERPRET=1)."""

    name = "triton"

    def available(self) -> Support:
        if importlib.util.find_spec("triton") is None:
            return Support(False, "triton is not installed (pip install triton)")
        if torch.cuda.is_available() or _interpreted():
            return Support(True)
        return Support(False, "PyTorch sees no GPU (set TRITON_INTERPRET=1 to run the kernels in the interpreter)")

    def supports(self, call: Call) -> Support:
        if call.operator not in _TRITON_OPERATORS:
            return Support(False, f"no Triton kernel for {call.operator}")
        if call.device != "cuda" and not _interpreted():
            return Support(False, f"the tensors are on {call.device}, this back end works on cuda")
        if call.channels % 16 or not 16 <= call.channels <= 1024:
            return Support(False, f"C must be a multiple of 16 from 16 to 1024, got {call.channels}")
        if call.entries > _TRITON_ENTRIES:
            return Support(False, f"at most {_TRITON_ENTRIES} dictionary entries a head, got {call.entries}")
        return _dtype_support(call)


class Cuda:
    """CUDA kernels of the compiled extension."""

    name = "cuda"

    def available(self) -> Support:
        if not _extension.CUDA_LOADED:
            return Support(False, _extension.WHY_NOT_CUDA)
        return Support(False, "the CUDA part holds no kernels yet; GPUs are served by triton")

    def supports(self, call: Call) -> Support:
        return self.available()


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
