"""What a published data set says about itself, and the matching of its images with their masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from d2ls_fast.data.palettes import PALETTES
from d2ls_fast.data.raster import EXTENSIONS
from d2ls_fast.errors import UserError, raise_or_add

Files = dict[str, Path]
"""Identifier of an image -> file."""


class Subsets(NamedTuple):
    """The published subsets that each split is made of."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


class Matched(NamedTuple):
    """A subset, matched."""

    masks: dict[Path, Path]
    """Image -> mask."""
    found: set[str]
    """Identifiers of all images found, masks or not."""
    left_out: set[str]
    """Identifiers of the subset that were left out."""


class PublishedDataset(ABC):
    """A data set in the folders and files in which its publishers give it out.

    A *subset* is a published division (``train``, ``val``, ``test``); the protocols say which subsets train, validate
    and test. One without public labels is in neither.
    """

    name: ClassVar[str]
    """As ``data.dataset`` gives it."""
    title: ClassVar[str]
    palette: ClassVar[str]
    layout: ClassVar[str]
    """What has to lie below ``data.root``, for messages."""
    counts: ClassVar[Mapping[str, int]] = {}
    """Images of each subset as published, where known."""
    variants: ClassVar[Sequence[str]] = ()
    """Forms in which it is given out, the default first."""
    ids_left_out: ClassVar[Sequence[str]] = ()
    """Identifiers that ``data.leave_out`` names by default."""
    eroded_truth: ClassVar[bool] = False
    """Whether masks with eroded class borders are published too."""
    honest: ClassVar[Subsets] = Subsets(train=("train",), val=("val",), test=("test",))
    paper: ClassVar[Subsets] = Subsets(train=("train", "val"), val=("val",), test=("test",))
    no_test: ClassVar[str] = ""
    """Why a protocol has no test split."""
    figures: ClassVar[str]
    """The scores that the authors of D2LS published, with what they rest on; empty where they published none."""

    def defaults(self, variant: str | None) -> dict[str, Any]:
        """Keys of the ``data:`` group and their values where the recipe does not give them."""
        keys: dict[str, Any] = {
            "classes": self.classes(variant),
            "ignore_colours": list(PALETTES[self.palette].ignore_colours),
            "normalisation": "imagenet",
            "bands": [1, 2, 3],
        }
        if self.variants:
            keys["variant"] = self.variants[0]
        if self.ids_left_out:
            keys["leave_out"] = list(self.ids_left_out)
        if self.eroded_truth:
            keys["eroded"] = True
        return keys

    def classes(self, variant: str | None) -> list[dict[str, Any]]:
        """Names and colours, and stored values where masks hold indices."""
        palette = PALETTES[self.palette]
        values = self.values(variant)
        entries: list[dict[str, Any]] = []
        for index, (name, colour) in enumerate(zip(palette.classes, palette.colours, strict=True)):
            entry: dict[str, Any] = {"name": name, "colour": list(colour)}
            if values is not None:
                entry["value"] = [values[index]]
            entries.append(entry)
        return entries

    def values(self, variant: str | None) -> Sequence[int] | None:
        """Stored mask value of each class; None where masks are coloured."""
        return None

    @abstractmethod
    def find(self, root: Path, subset: str, variant: str | None, eroded: bool) -> tuple[Files, Files]:
        """Images and masks of a subset by identifier, found below ``root``, not yet matched.

        Args:
            eroded: masks with eroded borders; only asked for where ``eroded_truth``.

        Raises:
            UserError: the subset is not there.
        """

    def subsets(self, protocol: str) -> Subsets:
        """What the splits are made of under ``protocol``."""
        return self.paper if protocol == "paper" else self.honest

    def match(
        self,
        root: Path,
        subset: str,
        variant: str | None,
        eroded: bool,
        left_out: Sequence[str],
        faults: list[UserError] | None = None,
    ) -> Matched:
        """The image and mask of every pair of a subset, without those ``left_out``.

        Args:
            faults: where given, receives an error for every single file instead of the first being raised.

        Raises:
            UserError: the subset is not there, an image without mask, or a mask without image; with how often.
        """
        images, masks = self.find(root, subset, variant, eroded)
        absent_by_choice = {identifier for identifier in left_out if identifier in images or identifier in masks}
        for identifier in absent_by_choice:
            images.pop(identifier, None)
            masks.pop(identifier, None)
        for what, files, others in (("image without a mask", images, masks), ("mask without an image", masks, images)):
            lone = [identifier for identifier in files if identifier not in others]
            for identifier in lone:
                error = UserError(
                    f"{files[identifier]}: {what} ({len(lone)} of {len(files)} in {self.title} {subset} have none);"
                    f" {self._remedy(identifier)}"
                )
                raise_or_add(error, faults)
        return Matched({images[key]: masks[key] for key in images if key in masks}, set(images), absent_by_choice)

    def _remedy(self, identifier: str) -> str:
        return f"expected below data.root is {self.layout}: add the file, or set data.leave_out=['{identifier}']"

    def absent(self, path: Path) -> UserError:
        """The error for a part of the data set that is not at ``path``."""
        return UserError(f"{path}: nothing of {self.title} here; data.root must be the folder that holds {self.layout}")


def folder_images(folder: Path, prefix: str = "") -> Files:
    """Image files directly in ``folder`` by ``prefix`` + stem, in order; empty where there is no such folder."""
    if not folder.is_dir():
        return {}
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and path.name[0] != ".")
    return {prefix + path.stem: path for path in paths}
