"""Grassland cover in five grades, 256 x 256, as released with D2LS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2ls_fast.data.published.base import Files, PublishedDataset, Subsets
from d2ls_fast.data.published.cloud import image_and_annotation_folders


class Grass(PublishedDataset):
    """``img_dir/{train,val}/NAME.tif`` and ``ann_dir/{train,val}/NAME.png``; masks hold 0..4, 255 for no label."""

    name = "grass"
    title = "Grass"
    palette = "grass"
    layout = "img_dir/{train,val}/NAME.tif and ann_dir/{train,val}/NAME.png"
    honest = Subsets(train=("train",), val=("val",), test=())
    paper = Subsets(train=("train",), val=("val",), test=())
    no_test = "Grass is published with train and val only"
    figures = (
        "mean IoU 51.96, overall accuracy 72.26, mean F1 66.27, from training on train+val with test-time augmentation"
    )

    def defaults(self, variant: str | None) -> dict[str, Any]:
        return super().defaults(variant) | {"masks": "index", "ignore_values": [255]}

    def values(self, variant: str | None) -> Sequence[int]:
        return range(5)

    def find(self, root: Path, subset: str, variant: str | None, eroded: bool) -> tuple[Files, Files]:
        return image_and_annotation_folders(self, root, subset)
