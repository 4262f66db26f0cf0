"""The back ends made of our own kernels: C++ for the CPU, Triton and CUDA for the GPU."""

from __future__ import annotations

import importlib.util
import os

import torch

from d2ls_fast import _extension
from d2ls_fast.backends.base import Call, Support
from d2ls_fast.kernels.configs import why_not

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_OPERATORS = (
    "attend",
    "refine",
    "refine_attend",
    "dictionary_step",
    "fuse_pyramid",
    "classify",
    "classify_labels",
    "segmentation_loss",
    "ratio_contrast",
    "pixel_dictionary_nce",
)
# On a GPU the projected form is the library's own attention.
_CPU_OPERATORS = (*_OPERATORS, "attend_projected", "refine_projected")
# Of csrc/cuda: kinds of GPU, and what fits into shared memory and registers.
_CUDA_OPERATORS = ("attend", "refine", "refine_attend", "classify", "classify_labels")
_CUDA_MAJORS = (8, 9, 10)
_CUDA_CHANNELS = 256
_CUDA_ENTRIES = 64
_CUDA_ENTRIES_FLOAT = 32
_CUDA_VECTORS = 1280  # class vectors of 16 floats
_TRITON_VECTORS = 256  # the scores of a sub-pixel for all class vectors are one register tile where the loss needs them


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
        if call.operator not in _OPERATORS:
            return Support(False, f"no Triton kernel for {call.operator}")
        if call.device != "cuda" and not _interpreted():
            return Support(False, f"the tensors are on {call.device}, this back end works on cuda")
        if call.operator == "segmentation_loss" and call.entries > _TRITON_VECTORS:
            return Support(False, f"at most {_TRITON_VECTORS} class vectors, got {call.entries}")
        problem = why_not(call.channels)
        if problem:
            return Support(False, problem)
        return _dtype_support(call)


class Cuda:
    """CUDA kernels of the compiled extension, chosen by name alone until they have run on a GPU."""

    name = "cuda"

    def available(self) -> Support:
        if not _extension.CUDA_LOADED:
            return Support(False, _extension.WHY_NOT_CUDA)
        if not torch.cuda.is_available():
            return Support(False, "the kernels are built, but PyTorch sees no GPU")
        major, minor = torch.cuda.get_device_capability()
        if major not in _CUDA_MAJORS:
            return Support(False, f"the kernels are for compute capability 8, 9 and 10, this GPU has {major}.{minor}")
        return Support(True)

    def supports(self, call: Call) -> Support:
        if call.operator not in _CUDA_OPERATORS:
            return Support(False, f"no CUDA kernel for {call.operator}")
        if call.device != "cuda":
            return Support(False, f"the tensors are on {call.device}, this back end works on cuda")
        if call.channels % 16 or not 0 < call.channels <= _CUDA_CHANNELS:
            reason = f"the kernels take channels in multiples of 16 up to {_CUDA_CHANNELS}, got {call.channels}"
            return Support(False, reason)
        entries = _CUDA_ENTRIES_FLOAT if call.dtype == torch.float32 else _CUDA_ENTRIES
        if call.operator.startswith("classify"):
            entries = _CUDA_VECTORS
        if call.entries > entries:
            return Support(False, f"the kernels take up to {entries} entries or class vectors, got {call.entries}")
        return _dtype_support(call)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
