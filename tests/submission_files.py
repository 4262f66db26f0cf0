"""Test images of both contests in miniature, and archives that are right."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from published_trees import SIZE

from d2ls_fast.inference.submissions.contest import Files

# As published, written out: neither what writes nor what checks is asked.
COLOURS = np.array(
    [[128, 0, 0], [128, 64, 128], [0, 128, 0], [128, 128, 0], [64, 0, 128], [192, 0, 192], [64, 64, 0], [0, 0, 0]],
    np.uint8,
)
CLASSES = {"loveda": 7, "uavid": 8}
MEMBERS = {
    "loveda": {"6": "6.png", "7": "7.png"},
    "uavid": {"seq21/000000": "seq21/Labels/000000.png", "seq21/000100": "seq21/Labels/000100.png"},
}
"""Identifier of each test image of the miniature trees -> the file that the archive must hold."""


def every_class(contest: str, seed: int = 0) -> NDArray[np.uint8]:
    """A label map of the test images' size with all classes."""
    return np.random.default_rng(seed).integers(0, CLASSES[contest], SIZE, np.uint8)


def png(pixels: NDArray[np.uint8], **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", **options)
    return stream.getvalue()


def right_files(contest: str) -> dict[str, bytes]:
    """Name -> contents of the files of an archive without fault."""
    maps = {name: every_class(contest, seed) for seed, name in enumerate(MEMBERS[contest].values())}
    return {name: png(labels if contest == "loveda" else COLOURS[labels]) for name, labels in maps.items()}


def zipped(path: Path, files: Mapping[str, bytes]) -> Path:
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@dataclass
class Published:
    """A contest's miniature tree and the test images in it."""

    contest: str
    root: Path
    images: Files
