"""Writing results so that nothing half-written is ever left under its final name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from d2ls_fast.errors import UserError


@contextmanager
def replacing(path: Path, *failures: type[Exception]) -> Iterator[Path]:
    """A temporary name beside ``path``: renamed to it when the block ends well, removed when it does not.

    The folder is made where it is missing.

    Raises:
        UserError: the system, or one of a library's own ``failures``, says that the file cannot be written.
    """
    caught: tuple[type[Exception], ...] = (OSError, *failures)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except caught as error:
        raise unwritable(path, error) from None
    finally:
        with suppress(OSError):  # the folder itself may be what is missing
            temporary.unlink(missing_ok=True)


def unwritable(path: Path, error: Exception) -> UserError:
    """The error that says that ``path`` cannot be written."""
    return UserError(f"{path}: cannot be written ({error}); choose a writable folder with free space")


@contextmanager
def replacing_together(folder: Path, name: str) -> Iterator[Path]:
    """A temporary folder inside ``folder``, called after ``name``, for files that belong together.

    When the block ends well, what is in it is brought to the disk and moved up into ``folder``, in the place of older
    files; when it does not, all of it is removed, whatever a library left beside its files.

    Raises:
        UserError: the system says that the folder or a file cannot be written.
    """
    temporary = folder / f".{name}.{os.getpid()}.part"
    # A run that was killed may have left it: in a container every run has the same process number.
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with _blamed(folder):
            temporary.mkdir(parents=True)
        yield temporary
        parts = sorted(temporary.iterdir())
        for part in parts:
            with _blamed(folder / part.name):
                _to_disk(part)  # some file systems tell only now that they are full
        for part in parts:
            with _blamed(folder / part.name):
                os.replace(part, folder / part.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _blamed(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from None


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def building_folder(path: Path, key: str) -> Iterator[Path]:
    """A temporary folder beside ``path``: renamed to it when the block ends well, removed when it does not.

    Raises:
        UserError: ``path`` is there already and is not an empty folder, or cannot be made; ``key`` is named.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path}: is there already; move it away, or choose another folder with {key}")
    writable_folder(path.parent, key)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.mkdir()
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
