"""Cloud cover of Landsat 8 (L8-Biome, bands 4, 3, 2), cut to 512 x 512 as released with D2LS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2ls_fast.data.published.base import Files, PublishedDataset, folder_images

# clear, cloud shadow, thin cloud, cloud
VALUES = {"biome": (128, 64, 192, 255), "grey": (0, 85, 170, 255)}


class Cloud(PublishedDataset):
    """``{img_dir,ann_dir}/{train,val,test}/``.

    ``variant: biome`` holds L8-Biome's own values 128, 64, 192, 255 with 0 for fill, which is unlabelled here (the
    release counted it as clear); ``grey`` holds 0, 85, 170, 255 and cannot tell fill from clear.
    """

    name = "cloud"
    title = "Cloud (L8-Biome)"
    palette = "cloud"
    layout = "img_dir, ann_dir/{train,val,test}/NAME.png"
    variants = tuple(VALUES)
    figures = (
        "mean IoU 82.16, overall accuracy 94.90, mean F1 89.65 on test, from training on train+val with fill counted"
        " as clear and test-time augmentation"
    )

    def defaults(self, variant: str | None) -> dict[str, Any]:
        fill = [] if variant == "grey" else [0]
        return super().defaults(variant) | {"masks": "index", "ignore_values": fill}

    def values(self, variant: str | None) -> Sequence[int]:
        return VALUES[variant or "biome"]

    def find(self, root: Path, subset: str, variant: str | None, eroded: bool) -> tuple[Files, Files]:
        return image_and_annotation_folders(self, root, subset)


def image_and_annotation_folders(dataset: PublishedDataset, root: Path, subset: str) -> tuple[Files, Files]:
    """The files of ``img_dir/SUBSET`` and ``ann_dir/SUBSET`` by stem; :class:`UserError` without images."""
    images = folder_images(root / "img_dir" / subset)
    if not images:
        raise dataset.absent(root / "img_dir" / subset)
    return images, folder_images(root / "ann_dir" / subset)
