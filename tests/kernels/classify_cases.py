"""The cases of test_classify.py, run in a process of their own: Triton decides for its interpreter when it is imported.

Prints one JSON object: case -> quantity -> [error, allowed error].
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from accuracy import FLOOR, relative_error
from torch import Tensor

from d2ls_fast.backends import backend
from d2ls_fast.ops.classify import PrototypeReduction, classify, classify_labels

NAMES = ("logits", "grad_pixels", "grad_norm_weight", "grad_norm_bias", "grad_hyper")


@dataclass(frozen=True)
class Case:
    """One call; class vectors beyond 16 take several blocks."""

    batch: int
    grid: tuple[int, int]
    channels: int
    classes: int
    prototypes: int = 1
    reduction: PrototypeReduction = "logsumexp"
    dtype: torch.dtype = torch.float32
    strided: bool = False
    tf32: bool = False
    scale: float = 1.0

    def inputs(self) -> tuple[list[Tensor], Tensor]:
        """The tensors, and the gradient of the logits."""
        (h, w), c, k = self.grid, self.channels, self.classes
        generator = torch.Generator().manual_seed(1000 * h * w + k)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        pixels = (normal(self.batch, h * w, c) * self.scale).to(self.dtype)
        hyper = normal(self.batch, k * self.prototypes, c // 16) * self.scale
        grad = normal(self.batch, k, 4 * h, 4 * w)
        if self.strided:  # a channels-first map seen pixel-major, every other row of a matrix, channels-last gradients
            pixels = pixels.transpose(1, 2).contiguous().transpose(1, 2)
            hyper = hyper.repeat_interleave(2, 1)[:, ::2]
            grad = grad.to(memory_format=torch.channels_last)
        return [pixels, 1 + 0.1 * normal(c // 4), 0.3 * normal(c // 4), hyper], grad


BF16, FP16 = torch.bfloat16, torch.float16
CASES = {
    "one pixel, one class": Case(1, (1, 1), 16, 1),
    "fp32": Case(3, (3, 7), 64, 7),
    "fp32, model width": Case(1, (2, 37), 256, 7),
    "fp32, blocks of classes": Case(2, (1, 5), 64, 19),
    "fp32, many classes, three prototypes": Case(1, (1, 1), 96, 150, 3),
    "fp32, largest prototype": Case(2, (3, 5), 96, 7, 3, "max"),
    "fp32, mean of prototypes": Case(1, (2, 9), 32, 2, 5, "mean"),
    "fp32, more prototypes than a block": Case(1, (1, 2), 64, 2, 20),
    "fp32, widest": Case(1, (2, 3), 1024, 5),
    "fp32, TF32 allowed": Case(1, (2, 5), 64, 5, tf32=True),
    "fp32, many chunks": Case(1, (10, 13), 64, 3),
    "fp32, views": Case(2, (5, 7), 64, 6, strided=True),
    "bf16": Case(3, (3, 7), 96, 7, dtype=BF16),
    "bf16, model width": Case(1, (1, 113), 256, 2, dtype=BF16),
    "bf16, blocks of classes, prototypes": Case(2, (1, 5), 272, 16, 2, dtype=BF16),
    "fp16": Case(5, (2, 5), 64, 5, dtype=FP16),
    "fp16, blocks of classes": Case(1, (2, 17), 256, 19, dtype=FP16),
}


def evaluate(case: Case, dtype: torch.dtype | None) -> list[Tensor]:
    """Logits and gradients: of the definition in ``dtype``, or of the Triton kernels."""
    tensors, grad = case.inputs()
    if dtype is not None:
        wide = torch.promote_types(dtype, torch.float32)
        tensors = [t.to(wide if i else dtype) for i, t in enumerate(tensors)]
        grad = grad.to(wide)
    leaves = [t.detach().requires_grad_() for t in tensors]
    with backend("triton" if dtype is None else "reference"):
        logits = classify(*leaves, case.grid, case.prototypes, case.reduction)
    logits.backward(grad)
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    for gradient, leaf in zip(gradients, leaves, strict=True):
        assert gradient.shape == leaf.shape and gradient.dtype == leaf.dtype
    return [logits.detach(), *gradients]


def wrong_labels(case: Case, logits: Tensor) -> dict[str, list[float]]:
    """How many labels are not the first maximum of the kernel's own logits, cropped; how far the confidence is off."""
    tensors, _ = case.inputs()
    size = (max(1, 4 * case.grid[0] - 1), 4 * case.grid[1] - 2)
    logits = logits[..., : size[0], : size[1]]
    with backend("triton"):
        labels, confidence = classify_labels(*tensors, case.grid, size, True, case.prototypes, case.reduction)
        alone, _ = classify_labels(*tensors, case.grid, size, False, case.prototypes, case.reduction)
    assert confidence is not None and labels.is_contiguous()
    assert labels.dtype is (torch.uint8 if case.classes <= 256 else torch.int16)
    return {
        "labels": [float((labels.long() != logits.argmax(1)).sum() + (alone != labels).sum()), 0],
        "confidence": [relative_error(confidence, logits.softmax(1).amax(1)), 3e-6],
    }


def compare(case: Case) -> dict[str, list[float]]:
    torch.backends.cuda.matmul.fp32_precision = "tf32" if case.tf32 else "ieee"
    truth, plain, results = evaluate(case, torch.float64), evaluate(case, case.dtype), evaluate(case, None)
    assert results[0].dtype is torch.float32
    return {
        name: [relative_error(result, exact), 2 * relative_error(unfused, exact) + FLOOR[case.dtype]]
        for name, result, unfused, exact in zip(NAMES, results, plain, truth, strict=True)
    } | wrong_labels(case, results[0])


def repeat() -> dict[str, list[float]]:
    """Differing elements between repeats."""
    case = Case(2, (1, 9), 64, 5, 2, dtype=BF16)
    first = evaluate(case, None)
    repeats = [evaluate(case, None) for _ in range(3)]
    return {"repeats": [sum(int((a != b).sum()) for r in repeats for a, b in zip(first, r, strict=True)), 0]}


def extreme() -> dict[str, list[float]]:
    """Scores beyond +-1e8, and an image without variance: inf or NaN would count as an infinite error."""
    quantities: dict[str, list[float]] = {}
    for prototypes, reduction in ((1, "max"), (3, "logsumexp"), (3, "max")):
        case = Case(1, (2, 5), 64, 5, prototypes, reduction, scale=1e4)  # type: ignore[arg-type]
        quantities |= {f"{prototypes} {reduction} {name}": value for name, value in compare(case).items()}
    return quantities


def ties() -> dict[str, list[float]]:
    """Of equal classes the first is the label, also over blocks; equal prototypes share their gradient."""
    (pixels, norm_weight, norm_bias, hyper), _ = Case(1, (1, 5), 64, 7).inputs()
    with backend("triton"):
        labels, _ = classify_labels(pixels, norm_weight, norm_bias, hyper.repeat(1, 5, 1), (1, 5), (4, 20))
        rows = hyper.repeat_interleave(2, 1).requires_grad_()
        classify(pixels, norm_weight, norm_bias, rows, (1, 5), 2, "max").sum().backward()
    assert rows.grad is not None
    shared = float((rows.grad[:, ::2] != rows.grad[:, 1::2]).sum())
    return {"labels beyond the first copy": [float((labels > 6).sum()), 0], "shared gradient": [shared, 0]}


def many_classes() -> dict[str, list[float]]:
    """Labels above 256 classes need 16 bits."""
    case = Case(1, (1, 1), 16, 300)
    tensors, _ = case.inputs()
    with backend("triton"):
        return wrong_labels(case, classify(*tensors, case.grid))


def standing() -> dict[str, list[float]]:
    """The operators as PyTorch wants them; what it finds wrong it raises."""
    (pixels, *shared), grad = Case(2, (1, 2), 32, 3, 2, dtype=BF16).inputs()
    tensors = [pixels.unflatten(1, (1, 2)), *shared]
    leaves = [t.detach().requires_grad_() for t in tensors]
    options = (2, "logsumexp", 1e-6)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    operators = torch.ops.d2ls_fast
    torch.library.opcheck(operators.classify_triton.default, (*leaves, *options), test_utils=tests)
    torch.library.opcheck(operators.classify_triton_backward.default, (*tensors, grad, *options), test_utils=tests)
    for confidence in (True, False):
        labels = operators.classify_labels_triton.default
        torch.library.opcheck(labels, (*tensors, *options, confidence), test_utils=tests)
    return {"opcheck": [0, 0]}


def main() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    report = {name: compare(case) for name, case in CASES.items()}
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    report |= {
        "repeat": repeat(),
        "extreme": extreme(),
        "ties": ties(),
        "many classes": many_classes(),
        "standing": standing(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
