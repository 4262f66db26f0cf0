"""An 8-bit PNG written row by row, so that no more of it is in memory than the rows at hand.

Pillow and GDAL both want the whole picture. The format: https://www.w3.org/TR/png-3/.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

GREY, INDEXED = 0, 3  # the standard's colour types


class PngWriter:
    """Takes the rows ``[r, w]`` uint8 from the top: indices into a palette (RGB 0..255), or grey without one.

    ``tags`` become text chunks. A context manager; the file is complete after ``finish``.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        palette: Sequence[Sequence[int]] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        height, width = shape
        self._deflate = zlib.compressobj()
        self._file = path.open("wb")
        self._file.write(b"\x89PNG\r\n\x1a\n")
        colour_type = GREY if palette is None else INDEXED
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0))
        for key, value in (tags or {}).items():
            # keyword, no compression, no language, no translated keyword, text
            self._chunk(b"iTXt", key.encode("latin-1", "replace")[:79] + bytes(5) + value.encode())
        if palette is not None:
            colours = np.zeros((256, 3), np.uint8)
            colours[: len(palette)] = palette
            self._chunk(b"PLTE", colours.tobytes())

    def write(self, rows: NDArray[np.uint8]) -> None:
        filtered = np.zeros((rows.shape[0], rows.shape[1] + 1), np.uint8)  # each row starts with its filter: none
        filtered[:, 1:] = rows
        if data := self._deflate.compress(filtered.tobytes()):
            self._chunk(b"IDAT", data)

    def finish(self) -> None:
        self._chunk(b"IDAT", self._deflate.flush())
        self._chunk(b"IEND", b"")
        self._file.close()

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self._file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

    def __enter__(self) -> PngWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # of a file that is given up; ``finish`` closed a whole one
            self._file.close()
