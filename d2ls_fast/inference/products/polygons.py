"""The outlines of a map's areas, found strip by strip.

An area is a set of pixels of one class that are connected over their edges (not over corners). Areas that touch the
lower edge of a strip stay open; each is put together from its pieces when a later strip closes it. All coordinates are
pixel corners: column, row.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import shapes

from d2ls_fast.inference.products.rows import NODATA

Polygons = NDArray[np.object_]
Areas = tuple[NDArray[np.uint8], Polygons]
"""Class ``[n]`` and outline ``[n]`` of areas."""


class OpenAreas:
    """The areas of a map ``width`` pixels wide that are not closed yet. Memory is that of their outlines."""

    def __init__(self, width: int) -> None:
        self._row = 0
        self._labels = np.full(width, NODATA, np.uint8)  # of the last row seen
        self._owners = np.full(width, -1)  # which open area each of its pixels belongs to
        self._values: list[int] = []
        self._pieces: list[list[shapely.Polygon]] = []

    def add(self, labels: NDArray[np.uint8]) -> Areas:
        """Take the next rows ``[r, w]`` and give the areas that they close."""
        values, polygons = outlines(labels, self._row)
        above = _owners(polygons, self._row, len(self._labels))
        self._row += len(labels)
        below = _owners(polygons, self._row, len(self._labels))
        joined = (labels[0] == self._labels) & (labels[0] != NODATA)
        bridges = np.unique(np.stack([self._owners[joined], above[joined]]), axis=1)
        ends = np.union1d(bridges[1], below[below >= 0])  # pieces that are not areas by themselves
        groups = _Groups(len(self._pieces) + len(ends))
        for area, piece in zip(bridges[0], len(self._pieces) + np.searchsorted(ends, bridges[1]), strict=True):
            groups.join(int(area), int(piece))

        pieces = [*self._pieces, *([polygons[end]] for end in ends)]
        classes = [*self._values, *(int(values[end]) for end in ends)]
        members: dict[int, list[shapely.Polygon]] = {}
        for item, parts in enumerate(pieces):
            members.setdefault(groups.root(item), []).extend(parts)
        # Root of the area of every pixel of the last row.
        roots = np.array([groups.root(len(self._pieces) + i) for i in range(len(ends))], dtype=np.int64)
        last = np.full(len(below), -1)
        last[below >= 0] = roots[np.searchsorted(ends, below[below >= 0])]
        still_open = np.unique(last[last >= 0])

        closed = sorted(set(members) - set(still_open.tolist()))
        alone = np.setdiff1d(np.arange(len(polygons)), ends)
        self._labels = labels[-1].copy()
        self._owners = np.where(last >= 0, np.searchsorted(still_open, last), -1)
        self._values = [classes[root] for root in still_open]
        self._pieces = [members[root] for root in still_open]
        return (
            np.concatenate([np.array([classes[root] for root in closed], np.uint8), values[alone]]),
            np.concatenate([_united(members[root] for root in closed), polygons[alone]]),
        )

    def close(self) -> Areas:
        """The areas that the end of the map closes."""
        return np.array(self._values, np.uint8), _united(self._pieces)


def outlines(labels: NDArray[np.uint8], top: int = 0) -> Areas:
    """The areas of ``labels`` ``[h, w]``, the first row of which is row ``top`` of the map."""
    values, rings, rings_of = [], [], []
    for geometry, value in shapes(labels, mask=labels != NODATA, connectivity=4):
        values.append(int(value))
        rings_of.append(len(geometry["coordinates"]))
        rings.extend(geometry["coordinates"])
    coordinates = np.array(list(chain.from_iterable(rings)), np.float64).reshape(-1, 2)
    coordinates[:, 1] += top
    offsets = (_offsets(len(ring) for ring in rings), _offsets(rings_of))
    polygons = shapely.from_ragged_array(shapely.GeometryType.POLYGON, coordinates, offsets)
    return np.array(values, np.uint8), shapely.normalize(polygons)


class _Groups:
    """Disjoint sets of the numbers below ``count``."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, item: int) -> int:
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def join(self, first: int, second: int) -> None:
        # The smaller number leads, so that results do not depend on the order of the joins.
        low, high = sorted((self.root(first), self.root(second)))
        self._parent[high] = low


def _owners(polygons: Polygons, row: int, width: int) -> NDArray[np.int64]:
    """For every pixel along the horizontal line ``row``, which polygon has an edge there; -1 for none.

    Only for lines on the border of the strip that the polygons are from: there an edge has one polygon, and only outer
    rings have edges.
    """
    points, ring = shapely.get_coordinates(shapely.get_exterior_ring(polygons), return_index=True)
    on_line = points[:, 1] == row
    edges = np.flatnonzero(on_line[:-1] & on_line[1:] & (ring[:-1] == ring[1:]))
    left = np.minimum(points[edges, 0], points[edges + 1, 0]).astype(np.int64)
    lengths = np.maximum(points[edges, 0], points[edges + 1, 0]).astype(np.int64) - left
    columns = np.arange(lengths.sum()) + np.repeat(left - (np.cumsum(lengths) - lengths), lengths)
    owners = np.full(width, -1)
    owners[columns] = np.repeat(ring[edges], lengths)
    return owners


def _united(groups: Iterable[list[shapely.Polygon]]) -> Polygons:
    united = [parts[0] if len(parts) == 1 else shapely.union_all(parts) for parts in groups]
    return _corners_only(np.array(united, dtype=object))


def _corners_only(polygons: Polygons) -> Polygons:
    """Without the points that stand on straight lines where strips met; normalised."""
    if not len(polygons):
        return polygons
    # A normalised ring starts at a corner, so that only points within it can stand on a line.
    _, points, (ring_offsets, polygon_offsets) = shapely.to_ragged_array(shapely.normalize(polygons), include_z=False)
    corner = np.ones(len(points), np.bool_)
    straight = (points[:-2] == points[1:-1]) & (points[1:-1] == points[2:])
    corner[1:-1] = ~straight.any(axis=1)
    corner[ring_offsets[:-1]] = corner[ring_offsets[1:] - 1] = True
    kept = np.concatenate([[0], np.cumsum(corner)])[ring_offsets]
    result = shapely.from_ragged_array(shapely.GeometryType.POLYGON, points[corner], (kept, polygon_offsets))
    return shapely.normalize(result)


def _offsets(lengths: Iterable[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.fromiter(lengths, np.int64))])
