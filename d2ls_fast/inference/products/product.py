"""What a product of a map is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from d2ls_fast.inference.products.rows import MapRows


class Writer(Protocol):
    """A context manager that takes a product's part of the rows from the top; the file is whole after ``finish``."""

    def write(self, *parts: Any) -> None: ...

    def finish(self) -> None: ...

    def __enter__(self) -> Any: ...

    def __exit__(self, *failure: Any) -> None: ...


class Product(NamedTuple):
    """One file made from a map."""

    name: str
    """What follows the scene's stem."""
    open: Callable[[Path], Writer]
    """Begins the file at a path."""
    parts: Callable[[MapRows], tuple[Any, ...]]
    """What of the rows the writer takes."""
