"""classify and classify_labels by the CUDA kernels, in their emulator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accuracy import assert_accurate
from cuda_emulator import Device, classify
from torch import Tensor

from d2ls_fast.ops._classify import classify_definition

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
EPS = 1e-6


def inputs(grid: tuple[int, int], channels: int, vectors: int, dtype: torch.dtype, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(channels + vectors)
    shapes = ((batch, *grid, channels), (channels // 4,), (channels // 4,), (batch, vectors, channels // 16))
    image, *vectors_ = (torch.randn(shape, generator=generator) for shape in shapes)
    return [image.to(dtype), *vectors_]


def defined(tensors: list[Tensor], prototypes: int, reduction: str, dtype: torch.dtype | None = None) -> Tensor:
    image, *vectors = tensors
    if dtype is not None:
        image, vectors = image.to(dtype), [v.to(torch.promote_types(dtype, FP32)) for v in vectors]
    result: Tensor = classify_definition(image, *vectors, prototypes, reduction, EPS)  # type: ignore[call-arg]
    return result


def logits_of(tensors: list[Tensor], prototypes: int, reduction: str, device: Device) -> Tensor:
    b, h, w, _ = tensors[0].shape
    logits = torch.full((b, tensors[3].shape[1] // prototypes, 4 * h, 4 * w), float("nan"))
    classify(*tensors, prototypes, reduction, EPS, device, {"logits": logits})  # type: ignore[misc]
    return logits


@pytest.mark.parametrize(
    ("grid", "channels", "classes", "prototypes", "reduction", "dtype"),
    [
        ((1, 1), 16, 1, 1, "max", BF16),
        ((3, 11), 256, 7, 1, "logsumexp", BF16),
        ((5, 7), 96, 3, 4, "logsumexp", BF16),
        ((5, 7), 64, 3, 4, "max", FP16),
        ((4, 9), 48, 2, 3, "mean", FP32),
        ((2, 8), 256, 19, 1, "max", FP32),
    ],
)
def test_logits(
    grid: tuple[int, int], channels: int, classes: int, prototypes: int, reduction: str, dtype: torch.dtype
) -> None:
    tensors = inputs(grid, channels, classes * prototypes, dtype)
    result = logits_of(tensors, prototypes, reduction, Device())
    truth, plain = (defined(tensors, prototypes, reduction, d) for d in (torch.float64, None))
    assert_accurate(["logits"], [result], [plain], [truth], dtype)
    other = Device(multiprocessors=7, descending=True)
    assert torch.equal(result, logits_of(tensors, prototypes, reduction, other))


@pytest.mark.parametrize(("classes", "dtype"), [(7, torch.uint8), (300, torch.int16)])
@pytest.mark.parametrize("with_confidence", [False, True])
def test_labels(classes: int, dtype: torch.dtype, with_confidence: bool) -> None:
    tensors = inputs((3, 11), 64, classes, BF16)
    tensors[3][:, 5] = tensors[3][:, 2]  # equals: the first counts
    logits = logits_of(tensors, 1, "max", Device())
    outputs: dict[str, Any] = {"labels": torch.full((2, 12, 44), 99, dtype=dtype)}
    if with_confidence:
        outputs["confidence"] = torch.full((2, 12, 44), float("nan"))
    classify(*tensors, 1, "max", EPS, Device(), outputs)  # type: ignore[misc]
    assert torch.equal(outputs["labels"].long(), logits.argmax(1))
    if with_confidence:
        torch.testing.assert_close(outputs["confidence"], logits.softmax(1).amax(1), rtol=1e-5, atol=1e-6)


def test_too_many_class_vectors_are_refused() -> None:
    tensors = inputs((1, 1), 256, 1281, BF16, batch=1)
    with pytest.raises(RuntimeError, match="up to 1280 class vectors, got 1281"):
        logits_of(tensors, 1, "max", Device())
