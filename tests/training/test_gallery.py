"""Choosing and drawing the worst and best tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from d2ls_fast.training.gallery import SIDE, UNLABELLED, WRONG, Gallery

PALETTE = [[0, 0, 200], [200, 0, 0]]


def show(gallery: Gallery, wrong: int, name: str, bands: int = 3, size: int = 10) -> None:
    """Add a tile of class 0 above and class 1 below in which the first ``wrong`` pixels are mistaken."""
    label = torch.zeros(size, size, dtype=torch.int64)
    label[size // 2 :] = 1
    guess = label.clone().to(torch.uint8)
    guess.view(-1)[:wrong] = 1
    label[-1] = 255
    gallery.add(torch.linspace(-1, 1, size).expand(bands, size, size), label, guess, name)


def gallery(count: int, bands: int = 3) -> Gallery:
    return Gallery(2, [], [100.0] * bands, [50.0] * bands, count)


@pytest.mark.parametrize("order", [range(9), reversed(range(9)), [4, 0, 8, 1, 7, 2, 6, 3, 5]])
def test_the_worst_and_the_best_are_kept_whatever_comes_first(order: range) -> None:
    found = gallery(count=2)
    for wrong in order:
        show(found, wrong, f"tile {wrong}")
    assert [tile.name for tile in found.worst] == ["tile 8", "tile 7"]
    assert [tile.name for tile in found.best] == ["tile 0", "tile 1"]
    assert found.best[0].mean_iou == found.best[0].accuracy == 1.0
    # class 0: 42 of 50 found; class 1: all 40, and 8 too many
    assert found.worst[0].mean_iou == pytest.approx((42 / 50 + 40 / 48) / 2)
    assert found.worst[0].accuracy == pytest.approx(82 / 90)


@pytest.mark.parametrize(("tiles", "worst", "best"), [(1, 1, 0), (2, 1, 1), (3, 2, 1), (7, 3, 3)])
def test_few_tiles_are_divided(tiles: int, worst: int, best: int) -> None:
    found = gallery(count=3)
    for wrong in range(tiles):
        show(found, wrong, str(wrong))
    assert (len(found.worst), len(found.best)) == (worst, best)
    assert not {tile.name for tile in found.worst} & {tile.name for tile in found.best}


def test_tiles_without_a_label_that_counts_are_left_out() -> None:
    empty = torch.full((4, 4), 255)
    for label, exclude in ((empty, []), (torch.zeros(4, 4, dtype=torch.int64), [0, 1])):
        found = Gallery(2, exclude, [0.0], [1.0], 3)
        found.add(torch.zeros(1, 4, 4), label, torch.zeros(4, 4, dtype=torch.uint8), "nothing")
        assert found.worst == found.best == []


@pytest.mark.parametrize("bands", [1, 2, 3, 7])
def test_pictures_of_any_bands(bands: int) -> None:
    found = gallery(2, bands)
    show(found, 3, "a", bands)
    pictures = found.worst[0].pictures(PALETTE)
    assert list(pictures) == ["image", "truth", "prediction", "errors"]
    assert all(picture.shape == (10, 10, 3) and picture.dtype == np.uint8 for picture in pictures.values())
    errors = pictures["errors"]
    assert (errors == WRONG).all(-1).sum() == 3 and (errors[0, :3] == WRONG).all()
    assert (errors == UNLABELLED).all(-1).sum() == 10
    image = pictures["image"].astype(int)
    assert image[0, 0].tolist() == [0, 0, 0] and image[0, -1].tolist() == [255, 255, 255]
    tint = pictures["truth"].astype(int) - (0.3 * image).round()
    assert tint[0, 0].tolist() == [0, 0, 140] and tint[6, 0].tolist() == [140, 0, 0]
    assert (pictures["truth"][-1] == image[-1]).all()  # not labelled: the image as it is
    assert (pictures["prediction"][0, :3, 0] > pictures["truth"][0, :3, 0]).all()


def test_large_tiles_are_made_small() -> None:
    found = gallery(1)
    show(found, 0, "large", size=3 * SIDE)
    assert found.worst[0].rgb.shape == (SIDE, SIDE, 3) and found.worst[0].truth.shape == (SIDE, SIDE)
    assert set(np.unique(found.worst[0].truth)) <= {0, 1, 255}
