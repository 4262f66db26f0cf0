"""Windows of probabilities in, finished rows of a map out: what is open is blended, and as little as possible is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2ls_fast.inference.products.rows import NODATA, MapRows
from d2ls_fast.inference.windows import Axis

IN_MEMORY = 16 * 2**20  # bytes of the sums between two rows of windows; more goes to a temporary file


class Window(NamedTuple):
    """What is known of one window.

    Attributes:
        column: its number in its row of windows.
        probabilities: float32 ``[K, h, w]`` on the model's grid; ``None`` where the scene has no data at all.
        known: which of the scene's pixels that it was made of hold data, bool ``[rows, columns]``.
    """

    column: int
    probabilities: Tensor | None
    known: NDArray[np.bool_]


class Layers(NamedTuple):
    """What is wanted of every pixel besides its label."""

    confidence: bool = False
    probabilities: bool = False


class Mosaic:
    """The map of one scene, row of windows by row of windows.

    A pixel is final as soon as the windows that see it are in. Sums are kept only of the row at hand, a window wide,
    and of the rows that it shares with the next one; the latter go to a temporary file where they are many. So memory
    does not depend on the scene's height, and on its width by a few bytes per pixel of a row of windows.

    Args:
        rows, columns: the axes.
        num_classes: K.
        layers: what ``add`` gives.
        device: where sums are kept.
        first: the row of windows that comes first; what is finished by those before it is not asked for.
    """

    def __init__(
        self, rows: Axis, columns: Axis, num_classes: int, layers: Layers, device: torch.device, first: int = 0
    ) -> None:
        self._rows, self._columns, self._classes = rows, columns, num_classes
        self._layers, self._device = layers, device
        self._row_weights, self._column_weights = (axis.weights.to(device) for axis in (rows, columns))
        self._shared: _SharedRows | None = None
        self._following: _SharedRows | None = None
        self._known = _KnownRows(columns.source, rows.finished(first))

    @torch.inference_mode()
    def add(self, number: int, windows: Iterable[Window]) -> MapRows:
        """Row of windows ``number``, all its ``windows`` from left to right -> the rows of the map that are now final.

        Numbers follow each other. The result may be empty.
        """
        rows, columns = self._rows, self._columns
        top, first, keep = rows.starts[number], rows.needed(number), rows.needed(number + 1)
        start, stop = rows.finished(number), rows.finished(number + 1)
        result = self._empty(start, stop)
        following = _SharedRows(self._classes, rows.end(number) - keep) if number + 1 < len(rows) else None
        self._following = following
        left = 0
        sums = torch.zeros(self._classes, rows.end(number) - first, 0, dtype=torch.float64, device=self._device)
        span = rows.back.span(start, stop) if stop > start else (first, first)
        for column, probabilities, known in windows:
            sums = torch.cat([sums, self._more(columns.end(column) - left - sums.shape[2], sums.shape[1])], dim=2)
            self._known.put(rows.read(number)[0], columns.read(column)[0], known)
            if probabilities is not None:
                weight = self._row_weights[number][:, None] * self._column_weights[column]
                place = sums[:, top - first :, columns.starts[column] - left :]
                place.addcmul_(probabilities.double(), weight.double())
            self._finish(result, sums[:, span[0] - first : span[1] - first], left, column)
            next_left = columns.needed(column + 1)
            if following is not None:
                following.put(sums[:, keep - first :, : next_left - left])
            sums, left = sums[:, :, next_left - left :], next_left
        self._known.mask(result, stop)
        if self._shared is not None:
            self._shared.close()
        self._shared, self._following = following, None
        return result

    def close(self) -> None:
        """Forget the sums that are open; nothing can be added any more."""
        for shared in (self._shared, self._following):
            if shared is not None:
                shared.close()

    def _empty(self, start: int, stop: int) -> MapRows:
        shape = (stop - start, self._columns.source)
        confidence = np.empty(shape, np.float32) if self._layers.confidence else None
        probabilities = np.empty((self._classes, *shape), np.uint8) if self._layers.probabilities else None
        return MapRows(start, np.empty(shape, np.uint8), confidence, probabilities)

    def _more(self, width: int, height: int) -> Tensor:
        """The next ``width`` columns of sums: what the last row of windows left, and zeros below."""
        more = torch.zeros(self._classes, height, width, dtype=torch.float64, device=self._device)
        if self._shared is not None:
            shared = self._shared.take(width)
            more[:, : shared.shape[1]] = shared.to(self._device)
        return more

    def _finish(self, result: MapRows, sums: Tensor, left: int, column: int) -> None:
        """Put the pixels into ``result`` that no window after ``column`` can change."""
        start, stop = self._columns.finished(column), self._columns.finished(column + 1)
        if start == stop or not len(result.labels):
            return
        first, end = self._columns.back.span(start, stop)
        part = sums[:, :, first - left : end - left].float()
        rows = result.start, result.start + len(result.labels)
        part = self._columns.back.apply(self._rows.back.apply(part, 1, *rows), 2, start, stop)
        best, labels = part.max(dim=0)
        place = np.s_[..., start:stop]
        result.labels[place] = labels.to(torch.uint8).cpu().numpy()
        if result.confidence is not None:
            result.confidence[place] = best.cpu().numpy()
        if result.probabilities is not None:
            result.probabilities[place] = (part * 255).round_().to(torch.uint8).cpu().numpy()


class _SharedRows:
    """Sums that one row of windows leaves to the next, ``[classes, height, width]``, from left to right, once."""

    def __init__(self, classes: int, height: int) -> None:
        self._shape = (classes, height)
        # Column by column in the file, so that any number of columns is one piece of it.
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 (closed by its owner)
        self.close = self._file.close
        self._reading = False

    def put(self, sums: Tensor) -> None:
        self._file.write(sums.permute(2, 0, 1).contiguous().cpu().numpy().tobytes())

    def take(self, width: int) -> Tensor:
        if not self._reading:
            self._file.seek(0)
            self._reading = True
        size = 8 * width * self._shape[0] * self._shape[1]
        content = np.frombuffer(bytearray(self._file.read(size)), np.float64)
        return torch.from_numpy(content).view(width, *self._shape).permute(1, 2, 0)


class _KnownRows:
    """Which of the scene's pixels hold data, for the rows that are not final; all others are forgotten."""

    def __init__(self, width: int, first: int) -> None:
        self._rows = np.zeros((0, width), np.bool_)
        self._first = first

    def put(self, row: int, column: int, known: NDArray[np.bool_]) -> None:
        missing = row + len(known) - self._first - len(self._rows)
        if missing > 0:
            fresh = np.zeros((missing, self._rows.shape[1]), np.bool_)
            self._rows = np.concatenate([self._rows, fresh])
        known = known[max(0, self._first - row) :]
        place = max(row, self._first) - self._first
        self._rows[place : place + len(known), column : column + known.shape[1]] = known

    def mask(self, result: MapRows, stop: int) -> None:
        """Mark the pixels of ``result`` that hold no data, and forget all rows before ``stop``."""
        missing = ~self._rows[: len(result.labels)]
        result.labels[missing] = NODATA
        if result.confidence is not None:
            result.confidence[missing] = np.nan
        if result.probabilities is not None:
            result.probabilities[:, missing] = 0
        self._rows = self._rows[stop - self._first :].copy()
        self._first = stop
