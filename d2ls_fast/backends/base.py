"""What a back end is: a way to compute the operators, which says where it works and what it cannot do."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch


class Support(NamedTuple):
    """An answer with its reason; ``reason`` is empty when ``ok``."""

    ok: bool
    reason: str = ""


class Call(NamedTuple):
    """What a back end needs to know of an operator call to say whether it can serve it."""

    operator: str
    device: str
    dtype: torch.dtype
    channels: int
    entries: int
    """Where the operator has a softmax over them: dictionary entries of a head, or class vectors; else 0."""


class Backend(Protocol):
    """One way to compute the operators."""

    name: str

    def available(self) -> Support:
        """Whether this back end works in this process at all."""
        ...

    def supports(self, call: Call) -> Support:
        """Whether this back end can serve ``call``, given that it is available."""
        ...
