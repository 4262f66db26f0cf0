"""The interaction in one kernel: the same as in passes, and when it is chosen."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from d2ls_fast.backends import backend
from d2ls_fast.nn import resident
from d2ls_fast.nn.classifier import PixelClassifier
from d2ls_fast.nn.interaction import AlternatingCrossAttention, Interaction


def inputs(dictionaries: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 35, 32), (35, 32), (2 * dictionaries, 5, 32))
    pixels, pe, dictionary = (torch.randn(shape, generator=generator).double() for shape in shapes)
    return pixels, pe, dictionary


@pytest.mark.parametrize("final", [True, False])
def test_it_is_what_the_passes_compute(final: bool) -> None:
    torch.manual_seed(0)
    layer = AlternatingCrossAttention(32, 4, 3, final_attention=final).double()
    with torch.no_grad(), backend("reference"):
        wanted = layer.run(*inputs())
    with torch.no_grad():
        got = resident.run(layer, *inputs())
    torch.testing.assert_close(got.dictionary, wanted.dictionary)
    torch.testing.assert_close(got.pixels, wanted.pixels)
    torch.testing.assert_close(list(got.stage_dictionaries), wanted.stage_dictionaries)


@pytest.mark.parametrize("confident", [True, False])
def test_labels_are_those_of_its_pixels(confident: bool) -> None:
    torch.manual_seed(0)
    layer, classifier = AlternatingCrossAttention(32, 4, 2).double(), PixelClassifier(5, 32).double()
    with torch.no_grad():
        wanted = layer.run(*inputs())
        expected = classifier.predict(wanted.pixels, wanted.dictionary, (5, 7), (18, 25), confident)
        labels, confidence = resident.labels(layer, classifier, *inputs(), (5, 7), (18, 25), confident)
    assert torch.equal(labels, expected[0])
    torch.testing.assert_close(confidence, expected[1])


class Asked:
    """The back end cuda is asked for by name, and the image fits unless ``reason``; ``runs`` counts the kernel's."""

    def __init__(self, reason: str = "") -> None:
        self.reason, self.runs = reason, 0

    def run(self, layer: AlternatingCrossAttention, *arguments: Tensor, keep_pixels: bool = False) -> Interaction:
        run = resident.run

        def counted(*given: object) -> object:
            self.runs += 1
            return run(*given)  # type: ignore[arg-type]

        with (
            patch.object(resident, "current_backend", lambda: "cuda"),
            patch.object(resident, "why_not", lambda *_: self.reason),
            patch.object(resident, "run", counted),
        ):
            return layer.run(*arguments, keep_pixels=keep_pixels)


@pytest.mark.parametrize(
    ("reason", "alternating", "dictionaries", "keep", "gradient", "runs"),
    [
        ("", True, 1, False, False, 1),
        ("too large", True, 1, False, False, 0),
        ("", False, 1, False, False, 0),
        ("", True, 2, False, False, 0),
        ("", True, 1, True, False, 0),
        ("", True, 1, False, True, 0),
    ],
)
def test_when_it_is_chosen(
    reason: str, alternating: bool, dictionaries: int, keep: bool, gradient: bool, runs: int
) -> None:
    torch.manual_seed(0)
    layer = AlternatingCrossAttention(32, 4, 2, alternating=alternating).double()
    arguments, asked = inputs(dictionaries), Asked(reason)
    with torch.set_grad_enabled(gradient):
        result = asked.run(layer, *arguments, keep_pixels=keep)
        wanted = layer.run(*arguments, keep_pixels=keep)
    assert asked.runs == runs
    assert len(result.stage_dictionaries) == 2 and len(result.stage_pixels) == len(wanted.stage_pixels)
    torch.testing.assert_close(result.dictionary, wanted.dictionary)
    torch.testing.assert_close(result.pixels, wanted.pixels)


def test_nobody_else_asks_for_it() -> None:
    layer = AlternatingCrossAttention(32, 4, 1).double()
    with torch.no_grad(), patch.object(resident, "why_not", lambda *_: ""):
        assert not resident.serves(layer, *inputs()[::2])
