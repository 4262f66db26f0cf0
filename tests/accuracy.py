"""The accuracy rule that every kernel is held to.

error <= 2 x (error of the unfused PyTorch path in the same precision) + a rounding floor, both against float64 and
relative to the largest magnitude of the tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOOR = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def relative_error(result: Tensor, truth: Tensor) -> float:
    """Largest absolute error over the largest magnitude; infinite where the result is not finite."""
    difference = (result.double() - truth.double()).abs().max()
    scale = truth.double().abs().max().clamp_min(1e-30)
    return (difference / scale).item() if torch.isfinite(result).all() else float("inf")


def assert_accurate(
    names: Sequence[str],
    results: Sequence[Tensor],
    plain: Sequence[Tensor],
    truth: Sequence[Tensor],
    dtype: torch.dtype,
    largest_score: float = 0.0,
) -> None:
    """Hold every result to the rule.

    ``largest_score``: of what an exponential is taken of. A log-sum-exp of that size, kept in float32 between forward
    and backward, is rounded by up to 2^-24 of it, and every weight recomputed from it by as much of itself.
    """
    assert len(names) == len(results) == len(plain) == len(truth)
    for name, result, unfused, exact in zip(names, results, plain, truth, strict=True):
        error = relative_error(result, exact)
        allowed = 2 * relative_error(unfused, exact) + FLOOR[dtype] + 2**-24 * largest_score
        assert error <= allowed, f"{name}: error {error:.2e} exceeds {allowed:.2e}"
