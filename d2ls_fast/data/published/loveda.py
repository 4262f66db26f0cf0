"""LoveDA (Wang et al. 2021): 0.3 m aerial RGB of urban and rural China, 1024 x 1024."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from d2ls_fast.data.published.base import Files, PublishedDataset, Subsets, folder_images


class LoveDA(PublishedDataset):
    """``{Train,Val,Test}/{Urban,Rural}/{images_png,masks_png}/<id>.png``; masks hold 1..7, 0 for no data."""

    name = "loveda"
    title = "LoveDA"
    palette = "loveda"
    layout = "Train, Val/{Urban,Rural}/{images_png,masks_png}/ID.png"
    counts: ClassVar[dict[str, int]] = {"train": 2522, "val": 1669}
    honest = Subsets(train=("train",), val=("val",), test=())
    paper = Subsets(train=("train", "val"), val=("val",), test=())
    no_test = (
        "the labels of LoveDA's test images are not public: make the contest's archive with `d2ls-fast submit loveda`"
    )
    figures = (
        "mean IoU 55.3 on the contest's test images, from training on train+val with test-time augmentation"
        " (a user of the released code reports 54.87)"
    )

    def defaults(self, variant: str | None) -> dict[str, Any]:
        return super().defaults(variant) | {"masks": "index", "ignore_values": [0]}

    def values(self, variant: str | None) -> Sequence[int]:
        return range(1, 8)

    def find(self, root: Path, subset: str, variant: str | None, eroded: bool) -> tuple[Files, Files]:
        images: Files = {}
        masks: Files = {}
        for area in ("Urban", "Rural"):
            folder = root / subset.capitalize() / area
            images |= folder_images(folder / "images_png")
            masks |= folder_images(folder / "masks_png")
        if not images:
            raise self.absent(root / subset.capitalize())
        return images, masks
