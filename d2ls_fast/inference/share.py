"""Scenes, or parts of a scene, shared out over the processes that torchrun started."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed

from d2ls_fast.errors import UserError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """This process among those that work together: number ``rank`` of ``size``."""

    rank: int = 0
    size: int = 1

    def part(self, items: Sequence[Item]) -> Sequence[Item]:
        """What of ``items`` is this process's: a run of them, no more than one longer than any other's."""
        return items[len(items) * self.rank // self.size : len(items) * (self.rank + 1) // self.size]

    def from_first(self, make: Callable[[], Item]) -> Item:
        """What ``make`` gives in the first process, in all of them; an error there is raised in all."""
        return self._all(_outcome(make) if self.rank == 0 else None)[0].result()

    def together(self, work: Callable[[], Item]) -> list[Item]:
        """What ``work`` gives in every process, once all are done; the first error is raised in all."""
        return [outcome.result() for outcome in self._all(_outcome(work))]

    def _all(self, outcome: Any) -> list[Any]:
        if self.size == 1:
            return [outcome]
        outcomes: list[Any] = [None] * self.size
        distributed.all_gather_object(outcomes, outcome)
        return outcomes


@dataclass(frozen=True)
class _Outcome:
    value: Any = None
    error: UserError | None = None

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


def _outcome(work: Callable[[], Any]) -> _Outcome:
    try:
        return _Outcome(value=work())
    except UserError as error:
        return _Outcome(error=error)


@contextmanager
def torchrun_share() -> Iterator[Share]:
    """This process's share under torchrun, and all of it without."""
    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        yield Share()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    # Nothing but words is exchanged, and a process may wait as long as another one's longest scene takes.
    distributed.init_process_group("gloo", timeout=datetime.timedelta(days=30))
    try:
        yield Share(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
