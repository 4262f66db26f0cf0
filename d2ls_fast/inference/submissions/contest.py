"""What a contest wants: which images it asks for, and how their label maps are named and stored."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from d2ls_fast.data.palettes import PALETTES, Colour
from d2ls_fast.errors import UserError
from d2ls_fast.models.checkpoint import ModelCard

Files = dict[str, Path]
"""Identifier of a test image -> file."""

MAP_EXTENSIONS = (".png", ".tif", ".tiff")


class Contest(ABC):
    """A data set whose test labels only its contest knows."""

    name: ClassVar[str]
    title: ClassVar[str]
    test_images: ClassVar[int]
    """How many there are."""
    layout: ClassVar[str]
    """The test images as published, for messages."""
    map_name: ClassVar[str]
    """How label rasters made elsewhere are named, for messages."""

    @property
    def classes(self) -> tuple[str, ...]:
        return PALETTES[self.name].classes

    @property
    def colours(self) -> tuple[Colour, ...]:
        return PALETTES[self.name].colours

    def find_images(self, folder: Path) -> Files:
        """The test images below ``folder``, in order.

        Raises:
            UserError: there is none, or two have the same identifier.
        """
        found = unique(self._images(folder), f"must be a test image once; give the folder of {self.layout}")
        if not found:
            what = "no test images" if folder.is_dir() else "no such folder, so no test images"
            raise UserError(f"{folder}: {what} of {self.title} here; give the folder that holds {self.layout}")
        return dict(sorted(found.items(), key=lambda item: [int(part) for part in re.findall(r"\d+", item[0])]))

    def find_maps(self, folder: Path, images: Files) -> Files:
        """The label raster of every test image, anywhere below ``folder``, as ``d2ls-fast predict`` names them or not.

        Raises:
            UserError: an image has no map, or two.
        """
        found = []
        for path in sorted(folder.rglob("*")):
            stem = path.stem.removesuffix("_labels")
            if path.suffix.lower() in MAP_EXTENSIONS and stem.isdigit() and path.name[0] != ".":
                identifier = self._identifier(path.relative_to(folder).parent / stem)
                if identifier in images:
                    found.append((identifier, path))
        maps = unique(found, "must have one map; take one away")
        missing = [identifier for identifier in images if identifier not in maps]
        if missing:
            raise UserError(
                f"{folder}: no map of test image {missing[0]} ({len(missing)} of {len(images)} have none); "
                f"map it and name the label raster {self.map_name}"
            )
        return {identifier: maps[identifier] for identifier in images}

    def check_classes(self, card: ModelCard, checkpoint: Path) -> None:
        """Refuse, with one line, a checkpoint whose labels do not mean this contest's classes."""
        if tuple(card.classes) != self.classes:
            raise UserError(
                f"{checkpoint}: its classes are {', '.join(card.classes)}; {self.title} wants "
                f"{', '.join(self.classes)}, in this order; give a model trained with configs/{self.name}, "
                f"or converted with --dataset {self.name}"
            )

    @abstractmethod
    def _images(self, folder: Path) -> Iterable[tuple[str, Path]]:
        """Identifiers and files of the test images below ``folder``."""

    @abstractmethod
    def _identifier(self, relative: Path) -> str | None:
        """The test image that a file at this path below a folder of maps, without extension, belongs to."""

    @abstractmethod
    def member(self, identifier: str) -> str:
        """The name of a test image's map in the archive."""

    @abstractmethod
    def picture(self, labels: NDArray[np.uint8]) -> Image.Image:
        """Class indices ``[h, w]`` as the contest stores them."""


def unique(found: Iterable[tuple[str, Path]], remedy: str) -> Files:
    """``found`` as a dictionary; :class:`UserError` where an identifier comes twice."""
    files: Files = {}
    for identifier, path in found:
        other = files.setdefault(identifier, path)
        if other != path:
            raise UserError(f"{path}: {identifier} is {other} too; each {remedy}")
    return files
