"""interact: its definition against the modules' own, its checks, and what it says of devices."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from accuracy import assert_accurate
from interact_calls import Case
from torch.utils._pytree import tree_map_only

from d2ls_fast import _extension
from d2ls_fast.backends import BackendError, backend, backends
from d2ls_fast.ops import classify_labels, interact_labels
from d2ls_fast.ops import interact as public
from d2ls_fast.ops.interact import interact, why_not

CASE = Case(2, 33, 2, 5, 32, 16, 2, torch.float64)
BF16, FP16 = torch.bfloat16, torch.float16
SMALL = [Case(2, 35, 2, 5, 32, 16, 2, BF16), Case(1, 203, 4, 8, 64, 32, 1, FP16, last_look=False)]
# On a GPU also an image that fills the device, three of which go in waves, and one with its own encoding.
LARGE = [
    Case(1, 128 * 128, 8, 7, 256, 128, 3),
    Case(3, 128 * 127, 8, 7, 256, 128, 3, FP16),
    Case(5, 33 * 31, 8, 8, 256, 128, 2, shared_pe=False),
    Case(1, 1023, 1, 60, 128, 64, 2),
]


def resident_gpu() -> bool:
    """Whether the kernel can run here."""
    return backends()["cuda"] == "available" and torch.cuda.get_device_capability()[0] in (9, 10)


# Device, back end, case.
RUNS = [("cpu", "auto", case) for case in SMALL]
RUNS += [("cuda", "cuda", case) for case in (*SMALL, *LARGE)] if resident_gpu() else []


def moved(tensors: Any, device: str) -> Any:
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), tensors)


@pytest.mark.parametrize(("device", "name", "case"), RUNS)
def test_accuracy_and_repeats(device: str, name: str, case: Case) -> None:
    arguments = moved(case.arguments(), device)
    with backend(name):
        first, *others = (interact(*arguments, case.heads) for _ in range(250 if device == "cuda" else 2))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))
    names = ("dictionary", "pixels", "stage dictionaries")
    assert_accurate(names, moved(first, "cpu"), case.defined(case.dtype), case.defined(torch.float64), case.dtype)


@pytest.mark.parametrize(("device", "name", "case"), [run for run in RUNS if run[2].last_look])
def test_labels_are_those_of_the_pixels(device: str, name: str, case: Case) -> None:
    arguments, classifier = moved(case.arguments(), device), moved(case.classifier(), device)
    grid = (1, case.pixels)
    with backend(name):
        result = interact(*arguments, case.heads)
        vectors = result.dictionary
        for layer in range(3):
            vectors = torch.nn.functional.linear(vectors, *classifier[2 * layer : 2 * layer + 2])
            vectors = vectors.relu() if layer < 2 else vectors
        wanted, sure = classify_labels(result.pixels, *classifier[6:], vectors, grid, (4, 4 * case.pixels), True)
        labels, confidence = interact_labels(*arguments, case.heads, classifier[:6], *classifier[6:], grid, True)
    assert (labels != wanted).float().mean() < 1e-3  # of equal scores either is right
    torch.testing.assert_close(confidence, sure, rtol=0, atol=5e-3)  # the plain form rounds on the way


def test_it_is_passes_of_the_other_operators() -> None:
    assert public is interact
    wanted = CASE.defined(torch.float64)
    for name in ("auto", "reference", "torch"):
        with backend(name):
            got = interact(*CASE.arguments(), CASE.heads)
        assert got.dictionary.dtype == torch.float32  # as it came
        for result, expected in zip(got, wanted, strict=True):
            torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_pixels_that_nobody_wants_are_left_out() -> None:
    assert interact(*CASE.arguments(), CASE.heads, keep_pixels=False).pixels.numel() == 0


def test_autocast_gives_its_dtype() -> None:
    pixels, *rest = CASE.arguments()
    with torch.autocast("cpu", torch.bfloat16):
        result = interact(pixels.float(), rest[0].float(), *rest[1:], CASE.heads)
    assert result.pixels.dtype == torch.bfloat16 and result.dictionary.dtype == torch.float32


@pytest.mark.parametrize("last_look", [True, False])
@pytest.mark.parametrize("keep_pixels", [True, False])
def test_opcheck(last_look: bool, keep_pixels: bool) -> None:
    case = Case(2, 9, 2, 3, 32, 16, 2, last_look=last_look)
    pixels, pe, dictionary, looks, refinements = case.arguments()
    of_looks = [p for look in looks for part in look for p in part]
    of_stages = [p for each in refinements for p in (*each.entries, *each[1:])]
    arguments = (pixels, pe, dictionary, of_looks, of_stages, 2, 1e-5, keep_pixels)
    torch.library.opcheck(torch.ops.d2ls_fast.interact.default, arguments)


def test_errors_name_what_is_wrong() -> None:
    pixels, pe, dictionary, looks, refinements = CASE.arguments()
    with pytest.raises(ValueError, match=r"dictionary must be \[2, K, 32\]"):
        interact(pixels, pe, dictionary[:1], looks, refinements, 2)
    with pytest.raises(ValueError, match="as many looks as refinements, or one more, got 1 and 2"):
        interact(pixels, pe, dictionary, looks[:1], refinements, 2)
    with pytest.raises(ValueError, match=r"no gradient; call it under torch.no_grad\(\)"):
        interact(pixels, pe, dictionary.requires_grad_(), looks, refinements, 2)
    with torch.no_grad():
        interact(pixels, pe, dictionary, looks, refinements, 2)
    with patch("d2ls_fast.backends._current", "triton"), pytest.raises(BackendError, match="interact"):
        interact(pixels, pe, dictionary.detach(), looks, refinements, 2)


def test_devices_that_do_not_serve_say_so() -> None:
    sizes = (torch.bfloat16, 1, 64, 256, 7, 8, 128, 3)
    assert why_not(torch.device("cpu"), *sizes) == "the resident kernel works on cuda, not on cpu"
    with patch.object(_extension, "CUDA_LOADED", False), patch.object(_extension, "WHY_NOT_CUDA", "not built"):
        assert why_not(torch.device("cuda"), *sizes) == "not built"
