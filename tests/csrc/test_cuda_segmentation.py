"""segmentation_sums and its backward by the CUDA kernels, in their emulator."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from accuracy import assert_accurate
from cuda_emulator import Device
from cuda_emulator_classify import Case, segmentation_gradients, segmentation_sums
from torch import Tensor

from d2ls_fast.ops.segmentation_loss import segmentation_sums_definition

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SUMS = ["cross_entropy", "overlap", "volume", "count"]
NAMES = ["pixels", "norm_weight", "norm_bias", "hyper"]
IGNORE = 255


def case(
    grid: tuple[int, int],
    size: tuple[int, int],
    channels: int,
    classes: int,
    dtype: torch.dtype,
    prototypes: int = 1,
    reduction: str = "logsumexp",
    weighted: bool = True,
    smoothing: float = 0.05,
) -> Case:
    """Two images, a fifth of the labels ignored, the last class absent where there are three or more."""
    generator = torch.Generator().manual_seed(channels + classes)
    vectors = classes * prototypes
    shapes = ((2, *grid, channels), (channels // 4,), (channels // 4,), (2, vectors, channels // 16))
    image, *shared = (torch.randn(shape, generator=generator) for shape in shapes)
    target = torch.randint(0, max(classes - 1, 1), (2, *size), generator=generator)
    target = target.where(torch.rand(target.shape, generator=generator) >= 0.2, IGNORE)
    weights = torch.rand(classes, generator=generator) + 0.5 if weighted else None
    return Case([image.to(dtype), *shared], target, weights, smoothing, IGNORE, prototypes, reduction, 1e-6)


def by_definition(of: Case, given: list[Tensor], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """The sums, and the gradients for those of the first three."""
    wide = torch.promote_types(dtype, FP32)
    leaves = [t.detach().to(dtype if i == 0 else wide).requires_grad_() for i, t in enumerate(of.tensors)]
    weights = None if of.class_weights is None else of.class_weights.to(wide)
    sums = segmentation_sums_definition(
        *leaves, of.target, weights, of.smoothing, of.ignore_index, of.prototypes, of.reduction, of.eps
    )  # fmt: skip
    total = sum((g.to(wide) * s).sum() for g, s in zip(given, sums, strict=False))
    assert isinstance(total, Tensor)
    return [s.detach().reshape(-1) for s in sums], list(torch.autograd.grad(total, leaves))


def gradients_of_sums(classes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(classes)
    return [torch.randn(n, generator=generator) for n in (1, classes, classes)]


CASES = {
    "one pixel, one class": case((1, 1), (4, 4), 16, 1, FP32),
    "model width": case((3, 5), (12, 20), 256, 7, BF16),
    "cropped, no weights": case((3, 5), (9, 18), 96, 3, FP16, weighted=False),
    "no smoothing": case((2, 3), (8, 12), 64, 9, FP32, smoothing=0.0),
    "many classes": case((2, 2), (8, 7), 32, 27, FP32),
    "prototypes": case((2, 3), (8, 12), 48, 5, FP32, prototypes=3),
    "largest prototype": case((2, 3), (8, 12), 48, 5, FP32, prototypes=2, reduction="max"),
    "mean of prototypes": case((2, 3), (8, 12), 256, 4, BF16, prototypes=4, reduction="mean"),
}


@pytest.mark.parametrize("name", CASES)
def test_sums_and_gradients(name: str) -> None:
    of = CASES[name]
    dtype, given = of.tensors[0].dtype, gradients_of_sums(of.classes)
    (truth, true_gradients), (plain, plain_gradients) = (by_definition(of, given, d) for d in (torch.float64, dtype))
    cross_entropy, wrong, *others = segmentation_sums(of, Device())
    assert wrong.item() == 0 and torch.equal(others[2], truth[3].float())
    assert_accurate(SUMS, [cross_entropy, *others], plain, truth, dtype)
    gradients = segmentation_gradients(of, given, Device())
    assert_accurate(NAMES, gradients, plain_gradients, true_gradients, dtype)


def test_orders_give_the_same_bits() -> None:
    of, given = CASES["model width"], gradients_of_sums(7)
    first = [*segmentation_sums(of, Device()), *segmentation_gradients(of, given, Device())]
    for early, descending in itertools.product((False, True), repeat=2):
        device = Device(early=early, descending=descending)
        again = [*segmentation_sums(of, device), *segmentation_gradients(of, given, device)]
        assert all(map(torch.equal, first, again))
    other = Device(multiprocessors=2)
    for a, b in zip(first, [*segmentation_sums(of, other), *segmentation_gradients(of, given, other)], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_sure_predictions_lose_nothing() -> None:
    """Logits so far apart that the softmax is 0 and 1: errors count with the full distance, one class not at all."""
    of = case((2, 2), (8, 8), 64, 4, FP32, weighted=False, smoothing=0.0)
    of.tensors[3].mul_(1e4)
    sums = by_definition(of, gradients_of_sums(4), torch.float64)[0]
    assert_accurate(SUMS[:1], segmentation_sums(of, Device())[:1], sums[:1], sums[:1], FP32)
    one = case((2, 2), (8, 8), 64, 1, FP32)
    assert segmentation_sums(one, Device())[0].item() == 0
    results = segmentation_gradients(one, [torch.ones(1), torch.ones(1), torch.ones(1)], Device())
    assert all(not g.any() for g in results)


def test_nothing_labelled() -> None:
    of = CASES["model width"]
    of = replace(of, target=torch.full_like(of.target, IGNORE))
    assert all(not s.any() for s in segmentation_sums(of, Device()))
    assert all(not g.any() for g in segmentation_gradients(of, gradients_of_sums(7), Device()))


def test_labels_that_are_no_class_are_counted_and_take_no_part() -> None:
    of = CASES["model width"]
    wrong, ignored = (of.target.clone() for _ in range(2))
    wrong[0, 3, 5:8], ignored[0, 3, 5:8] = torch.tensor([7, -1, 1 << 40]), IGNORE
    results, expected = (segmentation_sums(replace(of, target=t), Device()) for t in (wrong, ignored))
    assert (results[1].item(), expected[1].item()) == (3, 0)
    assert all(torch.equal(a, b) for i, (a, b) in enumerate(zip(results, expected, strict=True)) if i != 1)


def test_a_class_may_be_the_ignored_one() -> None:
    of = replace(CASES["many classes"], ignore_index=0)
    of = replace(of, target=of.target.where(of.target != IGNORE, 1))
    given = gradients_of_sums(27)
    (truth, gradients), (plain, _) = (by_definition(of, given, d) for d in (torch.float64, FP32))
    cross_entropy, _, *others = segmentation_sums(of, Device())
    assert_accurate(SUMS, [cross_entropy, *others], plain, truth, FP32)
    assert_accurate(NAMES, segmentation_gradients(of, given, Device()), gradients, gradients, FP32)
