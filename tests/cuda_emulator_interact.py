"""interact by the resident CUDA kernel on the CPU."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from cuda_emulator import TYPES, CDevice, ClassifyCall, Device, _address, _checked, library
from cuda_emulator_step import EntriesWeights, LookWeights, StepShape, UpdateWeights
from torch import Tensor

from d2ls_fast.ops.interact import Interacted, LookUpdate, Refinement

MOST_STAGES = 6


class LookParameters(ctypes.Structure):
    _fields_ = [("look", LookWeights), ("update", UpdateWeights)]


class RefineParameters(ctypes.Structure):
    _fields_ = [
        ("entries", EntriesWeights),
        *((name, ctypes.c_void_p) for name in ("out_bias", "norm_weight", "norm_bias")),
    ]


class HyperWeights(ctypes.Structure):
    _fields_ = [
        (f"{layer}_{what}", ctypes.c_void_p) for layer in ("first", "second", "third") for what in ("weight", "bias")
    ]


class InteractCall(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("batch", "pixels", "pe_images")),
        ("shape", StepShape),
        *((name, ctypes.c_int) for name in ("stages", "looks")),
        *((name, ctypes.c_void_p) for name in ("x", "pe", "dictionary")),
        ("look", LookParameters * (MOST_STAGES + 1)),
        ("refine", RefineParameters * MOST_STAGES),
        *((name, ctypes.c_void_p) for name in ("refined", "stage_dictionaries", "last_dictionary")),
        ("hyper", HyperWeights),
        ("classify", ClassifyCall),
    ]


def _call(
    pixels: Tensor,
    pixel_pe: Tensor,
    dictionary: Tensor,
    looks: list[LookUpdate],
    refinements: list[Refinement],
    num_heads: int,
    eps: float,
    results: Interacted,
) -> InteractCall:
    (batch, count, channels), entries = pixels.shape, dictionary.shape[1]
    shape = StepShape(num_heads, entries, channels, looks[0].look.query_weight.shape[0], eps)
    of_looks = [LookParameters(LookWeights(*_all(e.look[:3])), UpdateWeights(*_all(e.update))) for e in looks]
    of_refinements = [RefineParameters(EntriesWeights(*_all(e.entries)), *_all(e[1:])) for e in refinements]
    return InteractCall(
        TYPES[pixels.dtype], batch, count, 1 if pixel_pe.dim() == 2 else batch, shape, len(refinements), len(looks),
        *_all((pixels, pixel_pe, dictionary)), (LookParameters * (MOST_STAGES + 1))(*of_looks),
        (RefineParameters * MOST_STAGES)(*of_refinements), None, _address(results.stage_dictionaries),
        _address(results.dictionary),
    )  # fmt: skip


def _poisoned(pixels: Tensor, dictionary: Tensor, refinements: list[Refinement]) -> Interacted:
    stages = torch.full((len(refinements), *dictionary.shape), float("nan"))
    return Interacted(torch.full_like(dictionary, float("nan")), torch.full_like(pixels, float("nan")), stages)


def interact(
    pixels: Tensor,
    pixel_pe: Tensor,
    dictionary: Tensor,
    looks: list[LookUpdate],
    refinements: list[Refinement],
    num_heads: int,
    device: Device,
    keep_pixels: bool = True,
    eps: float = 1e-5,
) -> Interacted:
    """Results start as NaN; without a last look the dictionary is that of the last stage."""
    results = _poisoned(pixels, dictionary, refinements)
    call = _call(pixels, pixel_pe, dictionary, looks, refinements, num_heads, eps, results)
    call.refined = _address(results.pixels) if keep_pixels else None
    _checked(library().d2ls_emulate_interact, device, call)
    last = results.dictionary if len(looks) > len(refinements) else results.stage_dictionaries[-1]
    return results._replace(dictionary=last)


def interact_labels(
    tensors: tuple[Tensor, Tensor, Tensor, list[LookUpdate], list[Refinement]],
    num_heads: int,
    classifier: list[Tensor],
    grid: tuple[int, int],
    device: Device,
    prototypes: int = 1,
    reduction: str = "logsumexp",
    return_confidence: bool = True,
) -> tuple[Tensor, Tensor]:
    """Labels (starting as 255) and confidence; ``classifier``: the hypernetwork's six tensors and the norm's two."""
    pixels, _, dictionary, _, refinements = tensors
    results = _poisoned(pixels, dictionary, refinements)
    call = _call(*tensors, num_heads, 1e-5, results)
    labels = torch.full((pixels.shape[0], 4 * grid[0], 4 * grid[1]), 255, dtype=torch.uint8)
    confidence = torch.full(labels.shape, float("nan"))
    call.hyper = HyperWeights(*_all(classifier[:6]))
    call.classify = ClassifyCall(
        TYPES[pixels.dtype], ("logsumexp", "max", "mean").index(reduction), pixels.shape[0], *grid, pixels.shape[2],
        dictionary.shape[1] // prototypes, prototypes, 1e-6, None, *_all(classifier[6:]), None, None,
        _address(labels), _address(confidence) if return_confidence else None,
    )  # fmt: skip
    _checked(library().d2ls_emulate_interact, device, call)
    return labels, confidence


def why_not(
    device: Device, dtype: torch.dtype, pixels: int, shape: StepShape, stages: int, looks: int, images: int = 1
) -> str:
    function = library().d2ls_why_not_interact
    function.restype, function.argtypes = ctypes.c_char_p, [ctypes.POINTER(CDevice), ctypes.POINTER(InteractCall)]
    call = InteractCall(type=TYPES[dtype], batch=images, pixels=pixels, shape=shape, stages=stages, looks=looks)
    reason: bytes | None = function(ctypes.byref(device.struct()), ctypes.byref(call))
    return (reason or b"").decode()


def _all(tensors: Any) -> list[int]:
    return [_address(tensor) for tensor in tensors]
