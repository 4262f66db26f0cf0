"""Reading one PNG strictly: Pillow fills in what a damaged one lacks with zeros, which would be taken for a class."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from d2ls_fast.errors import UserError

GREY, RGB = 0, 2
"""Colour types of the format's header."""
_NAMES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_png(data: bytes, colour_type: int, shape: tuple[int, int], place: str) -> NDArray[np.uint8]:
    """The pixels, ``[h, w]`` of grey or ``[h, w, 3]`` of RGB.

    Args:
        colour_type: the one it must have, with 8 bits a channel.
        shape: height and width that it must have; known before a pixel is unpacked.
        place: the picture's name for messages.

    Raises:
        UserError: it is of another kind or size, or damaged.
    """
    if data[:8] != _SIGNATURE or data[12:16] != b"IHDR" or len(data) < 33:
        raise UserError(f"{place} is not a PNG file; write it as one")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    if (depth, colour) != (8, colour_type):
        found, wanted = f"{depth}-bit {_NAMES.get(colour, colour)}", f"8-bit {_NAMES[colour_type]}"
        raise UserError(f"{place} is a {found} PNG; write it as {wanted}")
    if (height, width) != shape:
        raise UserError(f"{place} is {height} x {width}, its test image {shape[0]} x {shape[1]} pixels; map it whole")
    if interlaced:
        raise UserError(f"{place} is an interlaced PNG; write it without interlacing")
    expected = height * (1 + width * (3 if colour_type == RGB else 1))
    try:
        found_bytes = len(_pixel_stream(data, expected + 1))
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            pixels = np.asarray(picture)
    except (OSError, ValueError, SyntaxError, struct.error, zlib.error) as error:
        raise UserError(f"{place} is a damaged PNG ({error}); write it again") from None
    if found_bytes != expected:
        raise UserError(f"{place} is a damaged PNG (it does not hold all of its rows and no more); write it again")
    return pixels


def _pixel_stream(data: bytes, most: int) -> bytes:
    """The filtered rows, at most ``most`` bytes of them."""
    start, packed = len(_SIGNATURE), []
    while start < len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        if kind == b"IDAT":
            packed.append(data[start + 8 : start + 8 + length])
        start += 12 + length
    return zlib.decompressobj().decompress(b"".join(packed), most)
