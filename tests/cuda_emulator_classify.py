"""The CUDA kernels of classify's backward and of segmentation_sums on the CPU, as cuda_emulator runs them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from cuda_emulator import TYPES, ClassifyCall, Device, _address, _checked, library
from torch import Tensor


class Gradients(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("x", "norm_weight", "norm_bias", "hyper")]


class ClassifyGradientsCall(ctypes.Structure):
    _fields_ = [("of", ClassifyCall), ("grad_logits", ctypes.c_void_p), ("gradients", Gradients)]


def classify_call(tensors: list[Tensor], prototypes: int, reduction: str, eps: float) -> ClassifyCall:
    image, _, _, hyper = tensors
    batch, height, width, channels = image.shape
    return ClassifyCall(
        TYPES[image.dtype], ("logsumexp", "max", "mean").index(reduction), batch, height, width, channels,
        hyper.shape[1] // prototypes, prototypes, eps, *map(_address, tensors), None, None, None,
    )  # fmt: skip


def gradients_like(tensors: list[Tensor]) -> list[Tensor]:
    """Memory for the gradients, which starts as NaN."""
    return [torch.full_like(t, float("nan")) for t in tensors]


def classify_gradients(
    tensors: list[Tensor], grad_logits: Tensor, prototypes: int, reduction: str, eps: float, device: Device
) -> list[Tensor]:
    """Gradients of image, norm_weight, norm_bias and hyper by the CUDA kernels."""
    results = gradients_like(tensors)
    call = ClassifyGradientsCall(
        classify_call(tensors, prototypes, reduction, eps), _address(grad_logits), Gradients(*map(_address, results))
    )
    _checked(library().d2ls_emulate_classify_gradients, device, call)
    return results


class SegmentationCall(ctypes.Structure):
    _fields_ = [
        ("of", ClassifyCall),
        *((name, ctypes.c_void_p) for name in ("target", "class_weights")),
        *((name, ctypes.c_int) for name in ("target_height", "target_width")),
        ("ignore_index", ctypes.c_int64),
        ("smoothing", ctypes.c_float),
    ]


class Sums(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("cross_entropy", "wrong", "overlap", "volume", "count")]


class SumsGradients(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("cross_entropy", "overlap", "volume")]


class SegmentationSumsCall(ctypes.Structure):
    _fields_ = [("of", SegmentationCall), ("sums", Sums)]


class SegmentationGradientsCall(ctypes.Structure):
    _fields_ = [("of", SegmentationCall), ("given", SumsGradients), ("gradients", Gradients)]


@dataclass(frozen=True)
class Case:
    """The arguments of segmentation_sums."""

    tensors: list[Tensor]
    target: Tensor
    class_weights: Tensor | None
    smoothing: float
    ignore_index: int
    prototypes: int
    reduction: str
    eps: float

    @property
    def classes(self) -> int:
        return self.tensors[3].shape[1] // self.prototypes

    def call(self) -> SegmentationCall:
        of = classify_call(self.tensors, self.prototypes, self.reduction, self.eps)
        weights = None if self.class_weights is None else _address(self.class_weights)
        height, width = self.target.shape[1:]
        return SegmentationCall(of, _address(self.target), weights, height, width, self.ignore_index, self.smoothing)


def segmentation_sums(case: Case, device: Device) -> list[Tensor]:
    """cross_entropy, wrong, overlap, volume and count by the CUDA kernels."""
    sums = [torch.full((n,), float("nan")) for n in (1, 1, *(case.classes,) * 3)]
    call = SegmentationSumsCall(case.call(), Sums(*map(_address, sums)))
    _checked(library().d2ls_emulate_segmentation_sums, device, call)
    return sums


def segmentation_gradients(case: Case, given: list[Tensor], device: Device) -> list[Tensor]:
    """Gradients of image, norm_weight, norm_bias and hyper for those of cross_entropy, overlap and volume."""
    results = gradients_like(case.tensors)
    call = SegmentationGradientsCall(
        case.call(), SumsGradients(*map(_address, given)), Gradients(*map(_address, results))
    )
    _checked(library().d2ls_emulate_segmentation_gradients, device, call)
    return results
