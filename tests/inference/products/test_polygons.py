"""Areas found strip by strip are those of the whole map."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize, shapes

from d2ls_fast.inference.products.polygons import Areas, OpenAreas

Labels = NDArray[np.uint8]


def in_strips(labels: Labels, height: int) -> Areas:
    areas = OpenAreas(labels.shape[1])
    parts = [areas.add(labels[top : top + height]) for top in range(0, len(labels), height)]
    values, polygons = (np.concatenate(part) for part in zip(*parts, areas.close(), strict=True))
    return values, polygons


def at_once(labels: Labels) -> Counter[tuple[int, bytes]]:
    found = shapes(labels, mask=labels != 255, connectivity=4)
    return Counter((int(value), shapely.normalize(shapely.geometry.shape(area)).wkb) for area, value in found)


def random_map(seed: int, height: int, width: int) -> Labels:
    random = np.random.default_rng(seed)
    grain = int(random.integers(1, 5))
    labels = random.integers(0, 2 + seed % 4, (height, width), dtype=np.uint8)
    labels = labels.repeat(grain, axis=0).repeat(grain, axis=1)[:height, :width]
    labels[random.random(labels.shape) < 0.1] = 255
    return labels


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (33, 41), (90, 20)])
@pytest.mark.parametrize("strip", [1, 2, 7, 1000])
def test_the_areas_of_a_random_map_do_not_depend_on_the_strips(shape: tuple[int, int], strip: int) -> None:
    for seed in range(6):
        labels = random_map(seed, *shape)
        values, polygons = in_strips(labels, strip)
        assert shapely.is_valid(polygons).all()
        assert Counter(zip(values.tolist(), shapely.to_wkb(polygons), strict=True)) == at_once(labels)


def test_painting_the_areas_gives_the_map_back() -> None:
    labels = random_map(3, 64, 51)
    values, polygons = in_strips(labels, 5)
    painted = rasterize(zip(polygons, values, strict=True), labels.shape, fill=255, dtype="uint8")
    assert np.array_equal(painted, labels)
    for value in range(5):
        assert shapely.area(polygons[values == value]).sum() == (labels == value).sum()


def test_arms_that_meet_late_are_one_area_and_an_island_is_a_hole() -> None:
    labels = np.zeros((9, 9), np.uint8)
    labels[1:, 1:8:2] = 1
    labels[8, 1:8] = 1
    labels[3:5, 3:4] = 2
    values, polygons = in_strips(labels, 2)
    assert Counter(values.tolist()) == {0: 1, 1: 2, 2: 1}
    comb = polygons[np.argmax(np.where(values == 1, shapely.area(polygons), 0))]
    assert shapely.area(comb) == (labels == 1).sum() - 2  # the tip above the island stands alone
    walled = np.zeros((9, 9), np.uint8)
    walled[1:8, 1:8] = 1
    walled[2:7, 2:7] = 0
    assert sorted(len(area.interiors) for area in in_strips(walled, 2)[1]) == [0, 1, 1]


def test_corners_do_not_connect() -> None:
    checkers = np.indices((6, 6)).sum(axis=0).astype(np.uint8) % 2
    _, polygons = in_strips(checkers, 1)
    assert len(polygons) == 36
    assert (shapely.area(polygons) == 1).all()


def test_areas_are_given_as_soon_as_they_are_closed() -> None:
    labels = np.full((100, 8), 255, np.uint8)
    labels[::4, 2:5] = 1
    areas = OpenAreas(8)
    counts = [len(areas.add(labels[top : top + 10])[0]) for top in range(0, 100, 10)]
    assert sum(counts) == 25
    assert min(counts) >= 2


def test_a_map_without_data_has_no_areas() -> None:
    values, polygons = in_strips(np.full((10, 10), 255, np.uint8), 4)
    assert len(values) == len(polygons) == 0
