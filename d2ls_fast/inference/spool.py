"""The finished part of a map on disk, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from d2ls_fast.files import replacing, write_json
from d2ls_fast.inference.products.rows import MapRows

SETTINGS = "settings.json"


class Spool:
    """A folder with one file for each row of windows, holding the rows of the map that it finished.

    A file gets its name when it is whole, so whatever has its name can be relied on, whenever the process was killed.
    Processes may fill one spool together. What was left by a run with other ``settings`` is thrown away.

    Args:
        folder: made where it is missing.
        settings: all that the map depends on, as JSON values.
        resume: keep what is there, if its settings are the same.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], resume: bool = True) -> None:
        self.folder = folder
        stored = folder / SETTINGS
        if not (resume and _read_json(stored) == settings):
            self.remove()
            write_json(stored, settings)

    def finished(self, total: int) -> list[int]:
        """The rows of windows, of ``total``, that are in."""
        return [number for number in range(total) if _is_whole(self._file(number))]

    def put(self, number: int, rows: MapRows) -> None:
        """Keep what row of windows ``number`` has finished.

        Raises:
            UserError: the disk is full.
        """
        path = self._file(number)
        with (
            replacing(path) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as kept,
        ):
            for name, layer in rows._asdict().items():
                if layer is None:
                    continue
                # Labels shrink at once; what is as good as noise would only take time. ZipInfo alone means stored.
                member = f"{name}.npy" if name == "labels" else zipfile.ZipInfo(f"{name}.npy")
                with kept.open(member, "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(layer), allow_pickle=False)

    def rows(self, total: int) -> Iterator[MapRows]:
        """The whole map, from the top; all ``total`` rows of windows must be in."""
        for number in range(total):
            with np.load(self._file(number), allow_pickle=False) as layers:
                yield MapRows(int(layers["start"]), *(layers.get(name) for name in MapRows._fields[1:]))

    def remove(self) -> None:
        """Delete the folder and what is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_if_empty(self) -> None:
        """Delete the folder if no row of windows is in."""
        if not any(self.folder.glob("*.rows")):
            self.remove()

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06}.rows"


def runs(numbers: Iterable[int]) -> list[range]:
    """Ascending ``numbers`` as ranges of those that follow each other."""
    found: list[range] = []
    for number in numbers:
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found


def _is_whole(path: Path) -> bool:
    """Whether ``path`` is there and not cut short, as after a power failure."""
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path):
        return True
    return False


def _read_json(path: Path) -> Any:
    with suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return None
