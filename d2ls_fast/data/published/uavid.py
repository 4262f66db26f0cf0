"""UAVid (Lyu et al. 2020): oblique drone video frames, 2160 x 3840 or 4096."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from d2ls_fast.data.published.base import Files, PublishedDataset, Subsets, folder_images


class UAVid(PublishedDataset):
    """``uavid_{train,val,test}/seqN/{Images,Labels}/NNNNNN.png``; masks are coloured. Identifiers: ``seqN/NNNNNN``."""

    name = "uavid"
    title = "UAVid"
    palette = "uavid"
    layout = "uavid_train, uavid_val/seqN/{Images,Labels}/NNNNNN.png"
    counts: ClassVar[dict[str, int]] = {"train": 200, "val": 70}
    honest = Subsets(train=("train",), val=("val",), test=())
    paper = Subsets(train=("train", "val"), val=("val",), test=())
    no_test = (
        "the labels of UAVid's test images are not public: make the contest's archive with `d2ls-fast submit uavid`"
    )
    figures = "mean IoU 70.9 on the contest's test images, from training on train+val with test-time augmentation"

    def defaults(self, variant: str | None) -> dict[str, Any]:
        return super().defaults(variant) | {"masks": "colour", "eval_tile": 1024}

    def find(self, root: Path, subset: str, variant: str | None, eroded: bool) -> tuple[Files, Files]:
        images: Files = {}
        masks: Files = {}
        for sequence in sorted((root / f"uavid_{subset}").glob("seq*"), key=lambda path: (len(path.name), path.name)):
            images |= folder_images(sequence / "Images", f"{sequence.name}/")
            masks |= folder_images(sequence / "Labels", f"{sequence.name}/")
        if not images:
            raise self.absent(root / f"uavid_{subset}")
        return images, masks
