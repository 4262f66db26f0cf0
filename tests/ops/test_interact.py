"""interact: its definition against the modules' own, its checks, and what it says of devices."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from interact_calls import Case

from d2ls_fast import _extension
from d2ls_fast.backends import BackendError, backend
from d2ls_fast.ops import interact as public
from d2ls_fast.ops.interact import interact, why_not

CASE = Case(2, 33, 2, 5, 32, 16, 2, torch.float64)


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
    sizes = (torch.bfloat16, 64, 256, 7, 8, 128, 3)
    assert why_not(torch.device("cpu"), *sizes) == "the resident kernel works on cuda, not on cpu"
    with patch.object(_extension, "CUDA_LOADED", False), patch.object(_extension, "WHY_NOT_CUDA", "not built"):
        assert why_not(torch.device("cuda"), *sizes) == "not built"
