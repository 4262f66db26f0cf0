"""Writing results so that nothing half-written is ever left under its final name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from d2ls_fast.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of ``path``: renamed to ``path`` on success, removed on failure."""
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON; NaN is not allowed (see :func:`d2ls_fast.training.report.scores_to_json`)."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_yaml(path: Path, value: Any) -> None:
    """``value`` as YAML in the given key order."""
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), encoding="utf-8")


def writable_folder(path: Path, key: str) -> Path:
    """``path``, created where it is missing and proven writable before any long work starts.

    Raises:
        UserError: it is a file, cannot be created, or nothing can be written into it.
    """
    probe = path / f".write-test-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = (error.strerror or "unusable").lower()
        raise UserError(f"{path}: cannot write into this folder ({reason}); choose another with {key}") from None
    return path
