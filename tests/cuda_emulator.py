"""The CUDA kernels on the CPU: their sources, compiled with g++ against csrc/cuda/emulator, called through ctypes."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
CUDA = ROOT / "csrc" / "cuda"
# No fortified longjmp, which refuses to leave a stack for another one: fibers do nothing else.
FLAGS = ["-std=c++17", "-U_FORTIFY_SOURCE", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas", "-Werror"]
TYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}
TF32 = 1
OPERATORS = (
    "attend",
    "refine",
    "refine_attend",
    "classify",
    "classify_gradients",
    "segmentation_sums",
    "segmentation_gradients",
    "nce_sums",
    "nce_gradients",
    "dictionary_step",
    "interact",
    "attend_backward",
    "refine_backward",
    "refine_attend_backward",
)


class CDevice(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_int),
        ("multiprocessors", ctypes.c_int),
        ("early", ctypes.c_bool),
        ("descending", ctypes.c_bool),
    ]


@dataclass(frozen=True)
class Device:
    """The GPU that is emulated, and how its unspecified order of events is chosen; see csrc/cuda/emulator/block.h."""

    major: int = 9
    multiprocessors: int = 1
    early: bool = False
    descending: bool = False

    def struct(self) -> CDevice:
        return CDevice(self.major, self.multiprocessors, self.early, self.descending)


class AttendCall(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("batch", ctypes.c_int64),
        ("pixels", ctypes.c_int64),
        ("channels", ctypes.c_int),
        ("rows", ctypes.c_int),
        ("pe_images", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("x", "pe", "query", "context", "log_sum_exp")),
    ]


def compile_library(sources: list[Path], target: Path, include: Path = ROOT / "csrc", flags: str = "-O1") -> None:
    """Compile CUDA sources as plain C++."""
    compiler = os.environ.get("CXX", "g++")
    files = [str(source) for source in sources]
    command = [compiler, *FLAGS, flags, f"-I{include}", "-x", "c++", *files, "-o", str(target)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-4000:]


@functools.cache
def library() -> ctypes.CDLL:
    """The emulator's library, compiled again when a source has changed."""
    left_out = {*CUDA.glob("registration*.cu"), CUDA / "emulator" / "plans.cc"}
    sources = sorted({*CUDA.glob("*.cu"), *CUDA.rglob("*.cc")} - left_out)
    text = b"".join(path.read_bytes() for path in sorted(CUDA.rglob("*")) if path.is_file())
    target = ROOT / "build" / "emulator" / f"{hashlib.sha256(text).hexdigest()[:16]}.so"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:  # other test processes wait instead of compiling it too
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            beside = target.with_suffix(".new")
            compile_library(sources, beside)
            beside.replace(target)
    return loaded(target)


def loaded(path: Path) -> ctypes.CDLL:
    result = ctypes.CDLL(str(path))
    for name in OPERATORS:
        if not hasattr(result, f"d2ls_emulate_{name}"):
            continue
        getattr(result, f"d2ls_emulate_{name}").restype = ctypes.c_char_p
    return result


def _address(tensor: Tensor) -> int:
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def _checked(function: Callable[..., bytes | None], device: Device, call: ctypes.Structure) -> None:
    error = function(ctypes.byref(device.struct()), ctypes.byref(call))
    if error is not None:
        raise RuntimeError(error.decode())


def attend(
    pixels: Tensor,
    pixel_pe: Tensor,
    query: Tensor,
    device: Device,
    tf32: bool = False,
    emulator: ctypes.CDLL | None = None,
) -> tuple[Tensor, Tensor]:
    """attend by the CUDA kernels, with results that start as NaN."""
    (batch, count, channels), rows = pixels.shape, query.shape[1]
    context = torch.full((batch, rows, channels), float("nan"))
    log_sum_exp = torch.full((batch, rows), float("nan"))
    call = AttendCall(
        TF32 if tf32 else TYPES[pixels.dtype], batch, count, channels, rows,
        1 if pixel_pe.dim() == 2 else batch,
        *map(_address, (pixels, pixel_pe, query, context, log_sum_exp)),
    )  # fmt: skip
    _checked((emulator or library()).d2ls_emulate_attend, device, call)
    return context, log_sum_exp


class RefineCall(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("images", "dictionaries", "pixels")),
        *((name, ctypes.c_int) for name in ("channels", "heads", "entries")),
        ("pe_images", ctypes.c_int64),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("x", "pe", "key", "value")),
        *((name, ctypes.c_void_p) for name in ("key_bias", "out_bias", "norm_weight", "norm_bias", "refined")),
    ]


class RefineAttendCall(ctypes.Structure):
    _fields_ = [
        ("refine", RefineCall),
        ("queries", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("query", "context", "log_sum_exp")),
    ]


def _refine_call(arguments: dict[str, Tensor], num_heads: int, eps: float, tf32: bool, refined: Tensor) -> RefineCall:
    pixels, pixel_pe, key = (arguments[name] for name in ("pixels", "pixel_pe", "key"))
    images, count, channels = pixels.shape
    names = ("pixels", "pixel_pe", "key", "value", "key_bias", "out_bias", "norm_weight", "norm_bias")
    return RefineCall(
        TF32 if tf32 else TYPES[pixels.dtype], images, key.shape[0] // images, count,
        channels, num_heads, key.shape[1] // num_heads, 1 if pixel_pe.dim() == 2 else images, eps,
        *(_address(arguments[name]) for name in names), _address(refined),
    )  # fmt: skip


def _refined(arguments: dict[str, Tensor]) -> Tensor:
    pixels = arguments["pixels"]
    return torch.full((arguments["key"].shape[0], *pixels.shape[1:]), float("nan"), dtype=pixels.dtype)


def refine(arguments: dict[str, Tensor], num_heads: int, eps: float, device: Device, tf32: bool = False) -> Tensor:
    """refine by the CUDA kernel; ``arguments`` by name as the operator has them. The result starts as NaN."""
    refined = _refined(arguments)
    _checked(library().d2ls_emulate_refine, device, _refine_call(arguments, num_heads, eps, tf32, refined))
    return refined


def refine_attend(
    arguments: dict[str, Tensor], num_heads: int, eps: float, device: Device, emulator: ctypes.CDLL | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """refine_attend by the CUDA kernels; ``arguments`` also has the query."""
    refined, query = _refined(arguments), arguments["query"]
    context = torch.full(query.shape, float("nan"))
    log_sum_exp = torch.full(query.shape[:2], float("nan"))
    call = RefineAttendCall(
        _refine_call(arguments, num_heads, eps, False, refined), query.shape[1],
        *map(_address, (query, context, log_sum_exp)),
    )  # fmt: skip
    _checked((emulator or library()).d2ls_emulate_refine_attend, device, call)
    return refined, context, log_sum_exp


class ClassifyCall(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("reduction", ctypes.c_int),
        ("batch", ctypes.c_int64),
        *((name, ctypes.c_int) for name in ("height", "width", "channels", "classes", "prototypes")),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("x", "norm_weight", "norm_bias", "hyper")),
        *((name, ctypes.c_void_p) for name in ("logits", "labels", "confidence")),
    ]


def classify(
    image: Tensor, norm_weight: Tensor, norm_bias: Tensor, hyper: Tensor, prototypes: int, reduction: str, eps: float,
    device: Device, outputs: dict[str, Tensor],
) -> None:  # fmt: skip
    """classify, or classify_labels, by the CUDA kernels into ``outputs``: logits, or labels and (or not) confidence."""
    batch, height, width, channels = image.shape
    call = ClassifyCall(
        TYPES[image.dtype], ("logsumexp", "max", "mean").index(reduction), batch, height, width, channels,
        hyper.shape[1] // prototypes, prototypes, eps,
        *map(_address, (image, norm_weight, norm_bias, hyper)),
        *(_address(outputs[name]) if name in outputs else None for name in ("logits", "labels", "confidence")),
    )  # fmt: skip
    _checked(library().d2ls_emulate_classify, device, call)
