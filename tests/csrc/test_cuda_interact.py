"""interact by the resident CUDA kernel, in its emulator: blocks of an image wait for each other, images do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from accuracy import assert_accurate
from cuda_emulator import Device, classify
from cuda_emulator_interact import interact, interact_labels, why_not
from cuda_emulator_step import StepShape
from interact_calls import Case

from d2ls_fast.ops.interact import Interacted

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAMES = ("dictionary", "pixels", "stage dictionaries")


def emulated(case: Case, device: Device, keep_pixels: bool = True) -> Interacted:
    return interact(*case.arguments(), case.heads, device, keep_pixels)


def check(case: Case, device: Device) -> None:
    results = emulated(case, device)
    assert_accurate(NAMES, results, case.defined(case.dtype), case.defined(torch.float64), case.dtype)


CASES: dict[str, tuple[Case, Device]] = {
    "one pixel": (Case(1, 1, 1, 2, 16, 8, 1), Device(9)),
    "one block, the second warpgroup has nothing": (Case(1, 50, 2, 3, 32, 16, 2), Device(9)),
    "three blocks": (Case(1, 300, 2, 7, 64, 32, 3), Device(9, 3)),
    "two images in two waves": (Case(2, 133, 2, 5, 48, 16, 2, shared_pe=False), Device(9, 3)),
    "five images in two waves": (Case(5, 65, 1, 8, 32, 8, 1), Device(9, 3)),
    "no last look": (Case(1, 129, 2, 4, 64, 32, 2, last_look=False), Device(9, 2)),
    "fp16": (Case(1, 203, 4, 8, 64, 32, 2, FP16), Device(9, 5)),
    "one head, sixty entries": (Case(1, 140, 1, 60, 64, 16, 1), Device(9, 2)),
    "Blackwell": (Case(2, 150, 2, 7, 64, 32, 2), Device(10, 4)),
    "model width": (Case(1, 130, 8, 7, 256, 128, 1), Device(9, 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_against_the_definition(name: str) -> None:
    check(*CASES[name])


@pytest.mark.parametrize("major", [9, 10])
def test_any_order_of_events_gives_the_same_bits(major: int) -> None:
    case = Case(2, 190, 2, 7, 64, 32, 2)
    orders = [Device(major, 4, early, descending) for early in (False, True) for descending in (False, True)]
    first, *others = (emulated(case, device) for device in (*orders, Device(major, 2)))
    check(case, orders[0])
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_pixels_that_nobody_wants_are_not_written() -> None:
    case = Case(1, 100, 2, 4, 32, 16, 2)
    kept, left = (emulated(case, Device(9), keep) for keep in (True, False))
    assert left.pixels.isnan().all()
    assert torch.equal(kept.dictionary, left.dictionary)


# A case, its grid, prototypes and reduction, and the device.
LABELLED: dict[str, tuple[Case, tuple[int, int], int, str, Device]] = {
    "two images, three blocks": (Case(2, 273, 2, 7, 64, 32, 2), (13, 21), 1, "logsumexp", Device(9, 3)),
    "prototypes": (Case(1, 60, 1, 8, 48, 16, 1), (6, 10), 2, "max", Device(10, 1)),
    "sixty entries": (Case(1, 35, 1, 60, 64, 16, 1), (5, 7), 3, "logsumexp", Device(9, 1)),
    "model width": (Case(1, 130, 8, 7, 256, 128, 1, FP16), (10, 13), 1, "logsumexp", Device(9, 2)),
}


@pytest.mark.parametrize("name", LABELLED)
def test_labels_are_those_of_the_pixels_that_are_not_written(name: str) -> None:
    case, grid, prototypes, reduction, device = LABELLED[name]
    classifier, result = case.classifier(), emulated(case, device)
    vectors = result.dictionary
    for layer in range(3):
        vectors = torch.nn.functional.linear(vectors, *classifier[2 * layer : 2 * layer + 2])
        vectors = vectors.relu() if layer < 2 else vectors
    wanted = torch.zeros((case.images, 4 * grid[0], 4 * grid[1]), dtype=torch.uint8)
    sure = torch.zeros(wanted.shape)
    image, outputs = result.pixels.unflatten(1, grid), {"labels": wanted, "confidence": sure}
    classify(image, *classifier[6:], vectors.contiguous(), prototypes, reduction, 1e-6, device, outputs)
    arguments = (case.arguments(), case.heads, classifier, grid, device, prototypes, reduction)
    labels, confidence = interact_labels(*arguments)
    assert (labels != wanted).float().mean() < 1e-3  # of equal scores either is right
    torch.testing.assert_close(confidence, sure, rtol=1e-4, atol=1e-5)
    for early, descending in ((True, False), (False, True)):
        other = replace(device, early=early, descending=descending)
        assert torch.equal(interact_labels(*arguments[:4], other, *arguments[5:])[0], labels)
    again, left = interact_labels(*arguments, return_confidence=False)
    assert torch.equal(labels, again) and left.isnan().all()
    assert wanted.unique().numel() > 1


SHAPE = (8, 7, 256, 128)


@pytest.mark.parametrize(
    ("device", "dtype", "pixels", "shape", "stages", "reason"),
    [
        (Device(9, 132), BF16, 128 * 128, SHAPE, 3, ""),
        (Device(9, 132), FP16, 132 * 128, SHAPE, 6, ""),
        (Device(10, 148), BF16, 148 * 128, SHAPE, 3, ""),
        (
            Device(9, 132),
            BF16,
            132 * 128 + 1,
            SHAPE,
            3,
            "take 133 blocks .* holds 132 blocks at once, 133 are",
        ),
        (Device(8, 108), BF16, 64, SHAPE, 3, "compute capability 9 and 10 have; this device has 8"),
        (Device(9, 132), FP32, 64, SHAPE, 3, "bfloat16 and float16 pixels"),
        (Device(9, 132), BF16, 64, (8, 9, 256, 128), 3, "up to 64 rows .* got 8 x 9"),
        (Device(9, 132), BF16, 64, (1, 64, 64, 64), 3, "the dictionary step takes 32768 bytes"),
        (Device(9, 132), BF16, 64, (8, 7, 264, 128), 3, "multiples of 16 up to 256, got 264"),
        (Device(9, 132), BF16, 64, SHAPE, 7, "1 to 6 stages"),
    ],
)
def test_what_fits(
    device: Device, dtype: torch.dtype, pixels: int, shape: tuple[int, int, int, int], stages: int, reason: str
) -> None:
    answer = why_not(device, dtype, pixels, StepShape(*shape, 1e-5), stages, stages + 1)
    if not reason:
        assert answer == ""
    else:
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(answer)


def test_how_many_images_fit() -> None:
    answers = [why_not(Device(9, 132), BF16, 33 * 128, StepShape(*SHAPE, 1e-5), 3, 4, images) for images in (4, 5)]
    assert answers[0] == "" and answers[1].endswith("the device holds 132 blocks at once, 165 are needed")
