"""Every operator through every back end with kernels that works here: C++ on the CPU, on a GPU Triton and CUDA.

On a GPU with larger sizes too, and 250 repeats.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from accuracy import assert_accurate, relative_error
from operators import DEVICES, KERNELS, OPERATORS, SIZES, Size, results_of, served, tensors_of
from torch import Tensor

from d2ls_fast.backends import backend, backends
from d2ls_fast.ops import classify, classify_labels

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LARGE = [Size(2, (33, 31), 8, 7, 256), Size(1, (128, 128), 8, 7, 256), Size(2, (64, 65), 4, 19, 128)]
REPEATS = {"cpu": 2, "triton": 250, "cuda": 250}


def cases(
    operators: list[str], sizes: list[Size], dtypes: list[torch.dtype], larger: Sequence[Size] = ()
) -> list[object]:
    """``larger`` are sizes for a GPU alone."""
    return [
        pytest.param(name, operator, size, dtype, id=f"{name}-{operator}-{size}-{str(dtype)[6:]}")
        for name in KERNELS
        for operator in operators
        for size in (sizes if name == "cpu" else [*sizes, *larger])
        for dtype in dtypes
        if served(name, operator, size, dtype)
    ]


def test_the_back_ends_that_are_here_are_all_tested() -> None:
    """On a GPU none of the two is left out in silence."""
    if torch.cuda.is_available():
        assert {"triton", "cuda"} <= set(KERNELS), backends()
    assert KERNELS


@pytest.mark.parametrize(("name", "operator", "size", "dtype"), cases(list(OPERATORS), SIZES, DTYPES, LARGE))
def test_accuracy(name: str, operator: str, size: Size, dtype: torch.dtype) -> None:
    """Results and every gradient, by the accuracy rule; fresh memory is NaN."""
    tensors = tensors_of(operator, size, dtype, DEVICES[name])
    truth = results_of(operator, tensors, size, "reference", double=True)
    plain = results_of(operator, tensors, size, "reference")
    results = results_of(operator, tensors, size, name)
    assert list(results) == list(truth)
    names = [key for key, t in truth.items() if t.abs().max() > 1e-12]
    for key in set(truth) - set(names):
        assert results[key].abs().max() < 1e-6, key
    assert_accurate(names, *([found[key] for key in names] for found in (results, plain, truth)), dtype, 10.0)


@pytest.mark.parametrize(("name", "operator", "size", "dtype"), cases(list(OPERATORS), SIZES[2:], [torch.bfloat16]))
def test_repeats_are_bitwise_equal(name: str, operator: str, size: Size, dtype: torch.dtype) -> None:
    tensors = tensors_of(operator, size, dtype, DEVICES[name])
    first = results_of(operator, tensors, size, name)
    for _ in range(REPEATS[name]):
        again = results_of(operator, tensors, size, name)
        assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "operator", "size", "dtype"),
    cases(["classify_labels"], SIZES, DTYPES, LARGE),
)
def test_labels(name: str, operator: str, size: Size, dtype: torch.dtype) -> None:
    """Labels are where the exact logits are largest, or nearly so where two tie; the confidence is their softmax."""
    tensors = list(tensors_of("classify", size, dtype, DEVICES[name]).values())
    full = (4 * size.grid[0], 4 * size.grid[1])
    with backend("reference"):
        exact = classify(*(t.double() for t in tensors), size.grid)
        unfused = classify(*tensors, size.grid)
    with backend(name):
        labels, confidence = classify_labels(*tensors, size.grid, full, True)
        alone, nothing = classify_labels(*tensors, size.grid, full, False)
    assert labels.dtype is torch.uint8 and torch.equal(labels, alone) and nothing is None

    def chosen(scores: Tensor) -> Tensor:
        return exact.gather(1, scores.long().unsqueeze(1)).squeeze(1)

    best = exact.amax(1)
    assert_accurate(["logit"], [chosen(labels)], [chosen(unfused.argmax(1))], [best], dtype)
    assert confidence is not None
    assert (
        relative_error(confidence, exact.softmax(1).amax(1))
        < 2e-5 + 4 * relative_error(unfused, exact) * best.abs().max()
    )
