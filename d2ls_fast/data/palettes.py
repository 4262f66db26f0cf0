"""Class names and colours of the field's data sets, and painting labels with them.

Colours are those of the data sets' publishers: LoveDA (Wang et al. 2021), UAVid (Lyu et al. 2020), ISPRS 2D semantic
labelling (Potsdam, Vaihingen), iSAID (Waqas Zamir et al. 2019), L8-Biome cloud cover and grassland cover as released
with D2LS.
"""

from __future__ import annotations

from collections.abc import Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IGNORE_INDEX = 255
"""The label of pixels that are neither trained on nor scored; the same everywhere inside the package."""

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Palette:
    """Names and RGB colours (0..255) of the classes in index order, and the colours that mean "no label"."""

    classes: tuple[str, ...]
    colours: tuple[Colour, ...]
    ignore_colours: tuple[Colour, ...] = ()


PALETTES: dict[str, Palette] = {
    "loveda": Palette(
        ("background", "building", "road", "water", "barren", "forest", "agricultural"),
        ((255, 255, 255), (255, 0, 0), (255, 255, 0), (0, 0, 255), (159, 129, 183), (0, 255, 0), (255, 195, 128)),
    ),
    "uavid": Palette(
        ("building", "road", "tree", "low vegetation", "moving car", "static car", "human", "clutter"),
        (
            (128, 0, 0),
            (128, 64, 128),
            (0, 128, 0),
            (128, 128, 0),
            (64, 0, 128),
            (192, 0, 192),
            (64, 64, 0),
            (0, 0, 0),
        ),
    ),
    "isprs": Palette(
        ("impervious surface", "building", "low vegetation", "tree", "car", "clutter"),
        ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)),
        ignore_colours=((0, 0, 0),),
    ),
    "isaid": Palette(
        (
            "background",
            "ship",
            "store tank",
            "baseball diamond",
            "tennis court",
            "basketball court",
            "ground track field",
            "bridge",
            "large vehicle",
            "small vehicle",
            "helicopter",
            "swimming pool",
            "roundabout",
            "soccer ball field",
            "plane",
            "harbor",
        ),
        (
            (0, 0, 0),
            (0, 0, 63),
            (0, 63, 63),
            (0, 63, 0),
            (0, 63, 127),
            (0, 63, 191),
            (0, 63, 255),
            (0, 127, 63),
            (0, 127, 127),
            (0, 0, 127),
            (0, 0, 191),
            (0, 0, 255),
            (0, 191, 127),
            (0, 127, 191),
            (0, 127, 255),
            (0, 100, 155),
        ),
    ),
    "cloud": Palette(
        ("clear", "cloud shadow", "thin cloud", "cloud"),
        ((79, 253, 199), (221, 53, 223), (251, 255, 41), (77, 2, 115)),
    ),
    "grass": Palette(
        ("low", "middle-low", "middle", "middle-high", "high"),
        ((185, 101, 71), (248, 202, 155), (211, 232, 158), (138, 191, 104), (92, 144, 77)),
    ),
}


def distinct_colours(count: int) -> list[Colour]:
    """``count`` (at most 255) well separated colours, for classes whose colours nobody declared."""
    wheel = [(index * 0.618034) % 1.0 for index in range(count)]
    return [_from_hsv(hue, 0.55 + 0.4 * (index % 2), 0.95 - 0.25 * (index % 3)) for index, hue in enumerate(wheel)]


def colourise(labels: npt.NDArray[np.integer], palette: Sequence[Sequence[int]]) -> npt.NDArray[np.uint8]:
    """Paint ``labels`` [...] (integers) with ``palette`` [K][3] (0..255): uint8 [..., 3].

    Labels outside [0, K), the ignore index among them, become black.
    """
    table = np.zeros((len(palette) + 1, 3), np.uint8)
    table[:-1] = np.asarray(palette, np.uint8).reshape(-1, 3)
    known = (labels >= 0) & (labels < len(palette))
    return table[np.where(known, labels, len(palette))]


def hex_code(colour: Sequence[int]) -> str:
    """``(255, 0, 16)`` as ``#FF0010``."""
    return "#" + "".join(f"{int(value):02X}" for value in colour)


def _from_hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = (round(255 * part) for part in hsv_to_rgb(hue, saturation, value))
    return red, green, blue
