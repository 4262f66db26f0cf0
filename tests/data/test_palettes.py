from __future__ import annotations

import numpy as np
import pytest

from d2ls_fast.data.palettes import PALETTES, colourise, distinct_colours, hex_code


@pytest.mark.parametrize("name", PALETTES)
def test_every_class_has_its_own_colour(name):
    palette = PALETTES[name]
    assert (
        len(palette.classes)
        == len(palette.colours)
        == len(set(palette.colours) | set(palette.ignore_colours)) - len(palette.ignore_colours)
    )


def test_class_counts_are_those_of_the_data_sets():
    counts = {name: len(palette.classes) for name, palette in PALETTES.items()}
    assert counts == {"loveda": 7, "uavid": 8, "isprs": 6, "isaid": 16, "cloud": 4, "grass": 5}


def test_colourise_paints_unlabelled_pixels_black():
    painted = colourise(np.array([[0, 1], [255, -1]], np.int16), [[1, 2, 3], [4, 5, 6]])
    assert painted.dtype == np.uint8 and painted.tolist() == [[[1, 2, 3], [4, 5, 6]], [[0, 0, 0], [0, 0, 0]]]


def test_invented_colours_differ():
    assert len(set(distinct_colours(40))) == 40


def test_hex_code():
    assert hex_code((255, 0, 16)) == "#FF0010"
