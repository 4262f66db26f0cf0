"""What a pass over the windows of a scene gathers, window by window, as if it had seen the scene at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

Summary = TypeVar("Summary", bound="_Summary")


class _Summary(Protocol):
    def merged(self: Summary, other: Summary, /) -> Summary: ...


class Looked(NamedTuple):
    """What the dictionary saw in some of the cells: float64 context ``[J, C]`` and log-sum-exp ``[J]``."""

    context: Tensor
    log_sum_exp: Tensor

    def merged(self, other: Looked) -> Looked:
        """What it saw in the cells of both."""
        total = torch.logaddexp(self.log_sum_exp, other.log_sum_exp)
        own, others = (torch.exp(each.log_sum_exp - total).unsqueeze(-1) for each in (self, other))
        return Looked(own * self.context + others * other.context, total)


class Pooled(NamedTuple):
    """Maxima and float64 sums over so many ``cells`` of the deepest map, each ``[C / 2]``."""

    highest: Tensor
    total: Tensor
    cells: int

    def merged(self, other: Pooled) -> Pooled:
        """Those over the cells of both."""
        return Pooled(torch.maximum(self.highest, other.highest), self.total + other.total, self.cells + other.cells)


def merged(summaries: Sequence[Summary]) -> Summary | None:
    """All ``summaries`` merged one after the other; ``None`` of none."""
    return reduce(lambda total, each: total.merged(each), summaries) if summaries else None
