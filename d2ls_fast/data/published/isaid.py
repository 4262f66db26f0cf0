"""iSAID (Waqas Zamir et al. 2019): DOTA images of 800 to 13,000 pixels with 15 object classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from d2ls_fast.data.published.base import Files, PublishedDataset, Subsets
from d2ls_fast.errors import UserError

MASK_ENDING = "_instance_color_RGB"


class ISAID(PublishedDataset):
    """``{train,val}/**/<id>.png`` and ``<id>_instance_color_RGB.png``, however deep the archives were unpacked.

    Windows of 896 pixels are read from the whole images; no patches are cut beforehand. Some images are panchromatic,
    with a single band (DOTA's from GF-2 and JL-1): they are read as grey RGB.
    """

    name = "isaid"
    title = "iSAID"
    palette = "isaid"
    layout = "train, val/images/ID.png with ID_instance_color_RGB.png beside it or in another folder of the subset"
    counts: ClassVar[dict[str, int]] = {"train": 1411, "val": 458}
    honest = Subsets(train=("train",), val=("val",), test=())
    paper = Subsets(train=("train",), val=("val",), test=())
    no_test = "the labels of iSAID's test images are not public: predict them and submit them to its server"
    figures = ""  # the authors of D2LS never ran it

    def defaults(self, variant: str | None) -> dict[str, Any]:
        return super().defaults(variant) | {"masks": "colour", "eval_tile": 896, "grey_as_rgb": True}

    def find(self, root: Path, subset: str, variant: str | None, eroded: bool) -> tuple[Files, Files]:
        folder = root / subset
        images: Files = {}
        masks: Files = {}
        for path in sorted(folder.rglob("*.png")):
            if path.name.startswith("."):
                continue
            if path.stem.endswith(MASK_ENDING):
                masks[path.stem.removesuffix(MASK_ENDING)] = path
            elif "_instance_" not in path.stem:
                images[path.stem] = path
        archives = sorted(folder.rglob("*.zip"))
        if archives and not (images and masks):
            raise UserError(
                f"{archives[0]}: still packed ({len(archives)} archive(s) below {folder}, but no"
                f" {'masks' if images else 'images'}); unpack each where it lies, such as unzip {archives[0].name}"
            )
        if not images:
            raise self.absent(folder)
        return images, masks
