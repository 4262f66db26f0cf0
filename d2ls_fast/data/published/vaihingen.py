"""ISPRS Vaihingen: 33 orthophotos (near infrared, red, green) of about 2494 x 2064 pixels, 9 cm."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from d2ls_fast.data.published.isprs import IsprsTiles


class Vaihingen(IsprsTiles):
    """``top/top_mosaic_09cm_areaN.tif``, masks of the same name in another folder, and ``..._noBoundary.tif``.

    The complete archive also holds area 9, which is in neither published list and so never read.
    """

    name = "vaihingen"
    title = "ISPRS Vaihingen"
    layout = (
        "top/top_mosaic_09cm_areaN.tif, gts_for_participants/top_mosaic_09cm_areaN.tif and, anywhere below,"
        " top_mosaic_09cm_areaN_noBoundary.tif"
    )
    tiles: ClassVar[dict[str, list[str]]] = {
        "train": ["1", "3", "5", "7", "11", "13", "15", "17", "21", "23", "26", "28", "30"],
        "val": ["32", "34", "37"],
        "test": ["2", "4", "6", "8", "10", "12", "14", "16", "20", "22", "24", "27", "29", "31", "33", "35", "38"],
    }
    figures = (
        "mean F1 91.9 on the test tiles (clutter left out, eroded truth), from training on all training tiles with"
        " test-time augmentation"
    )

    def is_image(self, path: Path, identifier: str, variant: str | None) -> bool:
        return path.parent.name == "top" and path.name == f"top_mosaic_09cm_area{identifier}.tif"

    def is_mask(self, path: Path, identifier: str, eroded: bool) -> bool:
        name = f"top_mosaic_09cm_area{identifier}{'_noBoundary' if eroded else ''}.tif"
        return path.parent.name != "top" and path.name == name
