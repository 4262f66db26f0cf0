"""The computations that are timed, at six levels; one file per operator."""

from __future__ import annotations

from collections.abc import Callable

from d2ls_fast.benchmarks.cases import (
    attend,
    bare,
    contrast,
    dictionary_step,
    fuse_pyramid,
    patch,
    projected,
    sam,
    segmentation_loss,
    training_head,
)
from d2ls_fast.benchmarks.cases.common import Sizes
from d2ls_fast.benchmarks.cases.head import head_cases
from d2ls_fast.benchmarks.cases.model import model_cases, train_cases
from d2ls_fast.benchmarks.cases.peers import peer_cases
from d2ls_fast.benchmarks.harness import Case

__all__ = ["LEVELS", "Sizes", "head_cases"]

_OPERATORS = (attend, bare, segmentation_loss, fuse_pyramid, contrast, dictionary_step, projected)


def operator_cases(sizes: Sizes) -> list[Case]:
    return [case for operator in _OPERATORS for case in operator.cases(sizes)]


def all_head_cases(sizes: Sizes) -> list[Case]:
    return [*head_cases(sizes), *training_head.cases(sizes)]


def all_model_cases(sizes: Sizes) -> list[Case]:
    return [*model_cases(sizes), *peer_cases(sizes)]


LEVELS: dict[str, Callable[[Sizes], list[Case]]] = {
    "operator": operator_cases,
    "head": all_head_cases,
    "model": all_model_cases,
    "train": train_cases,
    "patch": patch.cases,
    "sam": sam.cases,
}
