"""The windows of a scene whose pixels meet one dictionary, pass by pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice, product
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from d2ls_fast.inference.cells import CELL, counting_cells, grid_span
from d2ls_fast.inference.features import FeatureStore, Kept, Place
from d2ls_fast.inference.scoring import WindowImage, WindowReader, batches, stacked
from d2ls_fast.inference.sources import Source
from d2ls_fast.models.head import D2LSHead
from d2ls_fast.nn.interaction import InteractionStage
from d2ls_fast.ops.dictionary_step import Step

if TYPE_CHECKING:
    from d2ls_fast.inference.predictor import Predictor


class Visited(NamedTuple):
    """A window: its pixels ``[1, N, C]`` after all updates so far, their positions in the scene ``[N, C]``, and the
    backbone's deepest map ``[1, c, h, w]`` where it was computed."""

    place: Place
    pixels: Tensor
    positions: Tensor
    deepest: Tensor | None


class SceneWindows:
    """All windows of a scene, visited in the same order and batches in every pass.

    Args:
        predictor: of a D2LS model, with axes on the grid of stride 32.
        source: the scene.
        store: where pixels are kept from pass to pass.
    """

    def __init__(self, predictor: Predictor, source: Source, store: FeatureStore) -> None:
        self._predictor, self._store = predictor, store
        self._head = cast("D2LSHead", predictor.model.head)
        self.rows, self.columns = predictor.axes(source)
        self.grid = (self.rows.window // CELL, self.columns.window // CELL)
        self._reader = WindowReader(source, self.rows, self.columns, predictor.card.mean, predictor.card.std)
        self._cells: dict[Place, NDArray[np.uint8]] = {}  # of windows with data: bits of the cells that count

    def visit(self, part: range, updates: Sequence[Step], visited: Callable[[], None]) -> Iterator[Visited]:
        """The windows of the rows ``part`` that hold data; their pixels after ``updates`` are kept.

        ``visited`` is called once for every window, with data or without.
        """
        stored = bool(self._cells) and all(place in self._store for place in self._cells)
        return (self._from_store if stored else self._from_source)(part, updates, visited)

    def counting(self, place: Place) -> NDArray[np.bool_]:
        """Which cells of a visited window count: see :func:`~d2ls_fast.inference.cells.counting_cells`."""
        size = self.grid[0] * self.grid[1]
        return np.unpackbits(self._cells[place], count=size).astype(np.bool_).reshape(self.grid)

    def pixels(self, row: int, windows: Sequence[WindowImage], updates: Sequence[Step]) -> Iterator[Visited]:
        """``windows`` of one row, that all hold data, from what was kept or from their images."""
        missing = [window for window in windows if (row, window.column) not in self._store]
        computed = iter(self._predictor.embedded(stacked(missing)) if missing else ())
        for window in windows:
            place = (row, window.column)
            if place in self._store:
                yield self._updated(place, self._store.get(place), updates)
            else:
                pixels, deepest = next(computed)
                yield self._updated(place, Kept(pixels, 0), updates, deepest)

    def _from_store(self, part: range, updates: Sequence[Step], visited: Callable[[], None]) -> Iterator[Visited]:
        for place in product(part, range(len(self.columns))):
            if place in self._cells:
                kept = self._store.get(place)
                window = self._updated(place, kept, updates)
                if kept.updates < len(updates):
                    self._store.put(place, Kept(window.pixels, len(updates)))
                yield window
            visited()

    def _from_source(self, part: range, updates: Sequence[Step], visited: Callable[[], None]) -> Iterator[Visited]:
        width, batch = len(self.columns), self._predictor.batch
        with closing(self._reader.read(part, 2 * batch)) as images:
            for row in part:
                for group in batches(islice(images, width), batch):
                    with_data = [window for window in group if window.image is not None]
                    for window in self.pixels(row, with_data, updates):
                        self._store.put(window.place, Kept(window.pixels, len(updates)))
                        known = next(each.known for each in with_data if each.column == window.place[1])
                        cells = counting_cells(known, self.rows, row, self.columns, window.place[1])
                        self._cells[window.place] = np.packbits(cells)
                        yield window
                    for _ in group:
                        visited()

    def _updated(self, place: Place, kept: Kept, updates: Sequence[Step], deepest: Tensor | None = None) -> Visited:
        """Window ``place`` after those of the ``updates`` that ``kept`` lacks."""
        rows, columns = grid_span(self.rows, place[0]), grid_span(self.columns, place[1])
        size = (self.rows.length // CELL, self.columns.length // CELL)
        with self._predictor.computing():
            pixels = kept.pixels.to(self._predictor.device)
            positions = self._head.positions(*size, rows, columns).to(pixels.dtype)
            stages = cast("list[InteractionStage]", list(self._head.interaction.layers))
            for stage, step in list(zip(stages, updates, strict=False))[kept.updates :]:
                pixels, _ = stage.one_pass(pixels, positions, step, looking=False)
        return Visited(place, pixels, positions, deepest)
