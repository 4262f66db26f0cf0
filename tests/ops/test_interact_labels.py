"""interact_labels: its definition against interact and classify_labels, its checks."""

from __future__ import annotations

import pytest
import torch
from interact_calls import Case

from d2ls_fast.backends import backend
from d2ls_fast.ops import classify_labels, interact, interact_labels

CASE = Case(2, 35, 2, 6, 32, 16, 2, torch.float64)
GRID = (5, 7)


@pytest.mark.parametrize(("prototypes", "reduction"), [(1, "logsumexp"), (2, "max"), (3, "mean")])
def test_it_is_the_interaction_and_then_the_labels(prototypes: int, reduction: str) -> None:
    pixels, pe, dictionary, looks, refinements = CASE.arguments()
    *layers, norm_weight, norm_bias = CASE.classifier()
    result = interact(pixels, pe, dictionary.double(), looks, refinements, 2)
    vectors = result.dictionary
    for layer in range(3):
        weight, bias = (t.double() for t in layers[2 * layer : 2 * layer + 2])
        vectors = vectors @ weight.T + bias
        vectors = vectors.relu() if layer < 2 else vectors
    options = (prototypes, reduction)
    norm = (norm_weight, norm_bias)
    expected = classify_labels(result.pixels, *norm, vectors, GRID, (20, 28), True, *options)  # type: ignore[arg-type]
    for name in ("auto", "reference", "torch"):
        with backend(name):
            arguments = (pixels, pe, dictionary.double(), looks, refinements, 2, layers, *norm, GRID)
            labels, confidence = interact_labels(*arguments, True, *options)  # type: ignore[arg-type]
        assert torch.equal(labels, expected[0])
        torch.testing.assert_close(confidence, expected[1])
    assert interact_labels(*arguments)[1] is None


@pytest.mark.parametrize("confidence", [True, False])
def test_opcheck(confidence: bool) -> None:
    pixels, pe, dictionary, looks, refinements = Case(2, 6, 2, 4, 32, 16, 1).arguments()
    *layers, norm_weight, norm_bias = CASE.classifier()
    of_looks = [p for look in looks for part in look for p in part]
    of_stages = [p for each in refinements for p in (*each.entries, *each[1:])]
    interaction = (pixels, pe, dictionary, of_looks, of_stages, 2, 1e-5)
    classifier = (layers, norm_weight, norm_bias, 2, 3, 2, "max", 1e-6, confidence)
    torch.library.opcheck(torch.ops.d2ls_fast.interact_labels.default, (*interaction, *classifier))


def test_errors_name_what_is_wrong() -> None:
    pixels, pe, dictionary, looks, refinements = CASE.arguments()
    *layers, norm_weight, norm_bias = CASE.classifier()
    norm = (norm_weight, norm_bias)
    with pytest.raises(ValueError, match="one more look than refinements"):
        interact_labels(pixels, pe, dictionary, looks[:2], refinements, 2, layers, *norm, GRID)
    with pytest.raises(ValueError, match="layers of hypernetwork must be"):
        interact_labels(pixels, pe, dictionary, looks, refinements, 2, layers[:4], *norm, GRID)
    with pytest.raises(ValueError, match=r"grid must be \(h, w\) with h \* w = 35"):
        interact_labels(pixels, pe, dictionary, looks, refinements, 2, layers, *norm, (5, 8))
    with pytest.raises(ValueError, match="prototypes must divide the 6 rows"):
        interact_labels(pixels, pe, dictionary, looks, refinements, 2, layers, *norm, GRID, prototypes=4)
