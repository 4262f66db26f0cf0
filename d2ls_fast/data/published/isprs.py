"""What Potsdam and Vaihingen share: numbered orthophoto tiles, coloured masks, eroded masks for scoring."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from d2ls_fast.data.published.base import Files, Matched, PublishedDataset, Subsets
from d2ls_fast.errors import UserError, raise_or_add


class IsprsTiles(PublishedDataset):
    """Tiles by fixed lists. Files are known by their names, wherever below the root the archives were unpacked.

    The publishers give train and test tiles only. ``val`` is a corner of the training area, held out here for the
    honest protocol; the paper's protocol trains on all of it and validates on the test tiles.
    """

    palette = "isprs"
    eroded_truth = True
    tiles: ClassVar[Mapping[str, Sequence[str]]]
    """Identifiers of each subset."""
    paper = Subsets(train=("train", "val"), val=("test",), test=("test",))

    def defaults(self, variant: str | None) -> dict[str, Any]:
        return super().defaults(variant) | {"masks": "colour", "eval_tile": 1024}

    @abstractmethod
    def is_image(self, path: Path, identifier: str, variant: str | None) -> bool:
        """Whether ``path`` is the orthophoto of a tile."""

    @abstractmethod
    def is_mask(self, path: Path, identifier: str, eroded: bool) -> bool:
        """Whether ``path`` is the (eroded) ground truth of a tile."""

    def find(self, root: Path, subset: str, variant: str | None, eroded: bool) -> tuple[Files, Files]:
        paths = sorted(path for path in root.rglob("*.tif") if path.name[0] != ".")
        images: Files = {}
        masks: Files = {}
        for identifier in self.tiles[subset]:
            for path in paths:
                if self.is_image(path, identifier, variant):
                    images.setdefault(identifier, path)
                elif self.is_mask(path, identifier, eroded):
                    masks.setdefault(identifier, path)
        if not images:
            raise self.absent(root)
        return images, masks

    def match(
        self,
        root: Path,
        subset: str,
        variant: str | None,
        eroded: bool,
        left_out: Sequence[str],
        faults: list[UserError] | None = None,
    ) -> Matched:
        tiles = self.tiles[subset]
        matched = super().match(root, subset, variant, eroded, left_out, faults)
        missing = [tile for tile in tiles if tile not in matched.found and tile not in left_out]
        for tile in missing:
            error = UserError(
                f"{root}: tile {tile} of {self.title} {subset} is not here ({len(missing)} of {len(tiles)} are"
                f" missing); {self._remedy(tile)}"
            )
            raise_or_add(error, faults)
        return matched._replace(left_out=set(left_out) & set(tiles))
