"""A stand-in for CUDA graphs where there is no GPU: what runs inside a capture is written down and done again.

As with a real graph, a replay reads and writes the tensors of the capture and runs no Python of the model.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorded:
    """In place of ``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def replay(self) -> None:
        with torch.no_grad():
            for function, arguments, options, results in self.calls:
                again = function(*arguments, **options)
                for new, old in zip(tree_leaves(again), tree_leaves(results), strict=True):
                    if isinstance(old, Tensor) and new is not old and new.data_ptr() != old.data_ptr():
                        old.copy_(new)


class Recording(TorchDispatchMode):
    """In place of ``torch.cuda.graph``."""

    def __init__(self, graph: Recorded, **_: Any) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        self.graph.calls.append((func, args, kwargs or {}, results))
        return results


def standing_in() -> Any:
    """Context in which the graphs of :mod:`d2ls_fast.models.graphed` work on the CPU."""
    return patch.multiple(
        "torch.cuda",
        CUDAGraph=Recorded,
        graph=Recording,
        graph_pool_handle=MagicMock(),
        Stream=MagicMock(),
        current_stream=MagicMock(),
        stream=lambda _: nullcontext(),
        device=lambda _: nullcontext(),
    )
