"""``d2ls-fast info``."""

from __future__ import annotations


def info() -> None:
    """Print versions, the compiled extension, the GPUs, and which back ends are usable or why not."""
    from d2ls_fast.info import show

    show()
