"""The cases of test_segmentation_loss.py, run in a process of their own, as Triton chooses its interpreter on import.

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

from d2ls_fast.backends import BackendError, backend
from d2ls_fast.ops._segmentation import segmentation_sums_definition
from d2ls_fast.ops.classify import PrototypeReduction
from d2ls_fast.ops.segmentation_loss import segmentation_loss

TENSORS = ("pixels", "norm_weight", "norm_bias", "hyper")
NAMES = ("cross_entropy", "overlap", "volume", "count", *(f"grad_{name}" for name in TENSORS))
EPS = 1e-6


@dataclass(frozen=True)
class Case:
    """One call; ``crop`` rows and columns fewer than the grid has at full resolution."""

    batch: int
    grid: tuple[int, int]
    channels: int
    classes: int
    prototypes: int = 1
    reduction: PrototypeReduction = "logsumexp"
    dtype: torch.dtype = torch.float32
    crop: int = 0
    smoothing: float = 0.05
    weighted: bool = True
    ignore_index: int = 255
    ignored: float = 0.3
    scale: float = 1.0

    def inputs(self) -> tuple[list[Tensor], Tensor, Tensor | None, list[Tensor]]:
        """The differentiable tensors, the labels, the class weights, and the gradients of the sums."""
        (h, w), c, k = self.grid, self.channels, self.classes
        generator = torch.Generator().manual_seed(1000 * h * w + k)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        pixels = (normal(self.batch, h, w, c) * self.scale).to(self.dtype)
        hyper = normal(self.batch, k * self.prototypes, c // 16) * self.scale
        shape = (self.batch, 4 * h - self.crop, 4 * w - self.crop)
        target = torch.randint(0, k, shape, generator=generator)
        ignored = torch.rand(shape, generator=generator) < self.ignored
        weights = torch.rand(k, generator=generator) + 0.1 if self.weighted else None
        tensors = [pixels, 1 + 0.1 * normal(c // 4), 0.3 * normal(c // 4), hyper]
        # As a mean has it, the gradient of the sum is small beside those of the classes' sums.
        grads = [torch.tensor(0.7), normal(k), normal(k)]
        return tensors, target.where(~ignored, self.ignore_index), weights, grads


BF16, FP16 = torch.bfloat16, torch.float16
CASES = {
    "one pixel, one class": Case(1, (1, 1), 16, 1),
    "fp32": Case(3, (3, 7), 64, 7, crop=1),
    "fp32, model width": Case(1, (2, 37), 256, 7, crop=3),
    "fp32, no weights, no smoothing": Case(2, (2, 5), 64, 2, weighted=False, smoothing=0.0),
    "fp32, class 0 ignored": Case(2, (2, 5), 64, 5, ignore_index=0),
    "fp32, nothing labelled": Case(1, (2, 5), 64, 5, ignored=1.0),
    "fp32, many classes": Case(1, (1, 5), 64, 150),
    "fp32, prototypes": Case(2, (2, 5), 96, 16, 3, crop=2),
    "fp32, largest prototype": Case(1, (3, 5), 32, 7, 3, "max"),
    "fp32, mean of prototypes": Case(1, (3, 5), 272, 2, 5, "mean"),
    "fp32, many chunks": Case(1, (10, 13), 64, 3, crop=1),
    "fp32, extreme": Case(1, (2, 5), 64, 5, scale=1e2),
    "bf16": Case(5, (2, 5), 96, 19, dtype=BF16, crop=1),
    "fp16": Case(1, (3, 17), 256, 5, 2, dtype=FP16),
}


def evaluate(case: Case, dtype: torch.dtype | None) -> list[Tensor]:
    """Sums and gradients: of the definition in ``dtype``, or of the Triton kernels."""
    tensors, target, weights, grads = case.inputs()
    wide = torch.promote_types(dtype or torch.float32, torch.float32)
    if dtype is not None:
        tensors = [t.to(wide if i else dtype) for i, t in enumerate(tensors)]
        weights = None if weights is None else weights.to(wide)
    leaves = [t.detach().requires_grad_() for t in tensors]
    function = segmentation_sums_definition if dtype is not None else torch.ops.d2ls_fast.segmentation_sums_triton
    options = (case.smoothing, case.ignore_index, case.prototypes, case.reduction, EPS)
    sums = function(*leaves, target, weights, *options)
    torch.autograd.backward(sums[:3], [g.to(wide) for g in grads])
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    for gradient, leaf in zip(gradients, leaves, strict=True):
        assert gradient.shape == leaf.shape and gradient.dtype == leaf.dtype
    return [*(s.detach() for s in sums), *gradients]


def compare(case: Case) -> dict[str, list[float]]:
    truth, plain, results = evaluate(case, torch.float64), evaluate(case, case.dtype), evaluate(case, None)
    quantities = {
        name: [relative_error(result, exact), 2 * relative_error(unfused, exact) + FLOOR[case.dtype]]
        for name, result, unfused, exact in zip(NAMES, results, plain, truth, strict=True)
    }
    return quantities | {"count": [float((results[3] != truth[3]).sum()), 0]}


def repeat() -> dict[str, list[float]]:
    """Differing elements between repeats."""
    case = Case(2, (1, 9), 64, 5, 2, dtype=BF16)
    first = evaluate(case, None)
    repeats = [evaluate(case, None) for _ in range(3)]
    return {"repeats": [sum(int((a != b).sum()) for r in repeats for a, b in zip(first, r, strict=True)), 0]}


def dispatch() -> dict[str, list[float]]:
    """The public function takes the kernels, names a wrong label, and says which shapes they do not take."""
    (pixels, *shared), target, _, _ = Case(1, (2, 5), 64, 5).inputs()
    losses = []
    for name in ("triton", "reference"):
        with backend(name):
            losses.append(torch.stack(segmentation_loss(pixels.flatten(1, 2), *shared, target, (2, 5))))
    expected = {
        "target must hold classes from 0 to 4 or ignore_index 255": (shared, 0, 5, ValueError),
        "at most 256 class vectors, got 257": ([*shared[:2], torch.zeros(1, 257, 4)], 0, 1, BackendError),
    }
    unnamed = 0
    for message, (others, at, label, kind) in expected.items():
        wrong = target.clone()
        wrong[0, at, at] = label
        try:
            with backend("triton"):
                segmentation_loss(pixels.flatten(1, 2), *others, wrong, (2, 5))
            unnamed += 1
        except kind as error:
            unnamed += message not in str(error)
    return {"losses": [relative_error(*losses), 1e-6], "unnamed errors": [unnamed, 0]}


def standing() -> dict[str, list[float]]:
    """The operators as PyTorch wants them; what it finds wrong it raises."""
    tensors, target, weights, grads = Case(2, (1, 2), 32, 3, 2, dtype=BF16).inputs()
    options = (target, weights, 0.05, 255, 2, "logsumexp", EPS)
    leaves = [t.detach().requires_grad_() for t in tensors]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    operators = torch.ops.d2ls_fast
    torch.library.opcheck(operators.segmentation_sums_triton.default, (*leaves, *options), test_utils=tests)
    backward = operators.segmentation_sums_triton_backward.default
    torch.library.opcheck(backward, (*tensors, *options, *grads), test_utils=tests)
    return {"opcheck": [0, 0]}


def main() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    report = {name: compare(case) for name, case in CASES.items()}
    print(json.dumps(report | {"repeat": repeat(), "dispatch": dispatch(), "standing": standing()}))


if __name__ == "__main__":
    main()
