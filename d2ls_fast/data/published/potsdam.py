"""ISPRS Potsdam: 38 orthophotos of 6000 x 6000 pixels, 5 cm."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from d2ls_fast.data.published.isprs import IsprsTiles

BANDS = {"rgb": "RGB", "irrg": "IRRG", "rgbir": "RGBIR"}


class Potsdam(IsprsTiles):
    """``top_potsdam_X_Y_{RGB,IRRG,RGBIR}.tif`` with ``_label.tif`` and ``_label_noBoundary.tif``.

    Tile 7_10 has a known fault in its labels and is left out unless ``data.leave_out`` says otherwise.
    """

    name = "potsdam"
    title = "ISPRS Potsdam"
    layout = (
        "2_Ortho_RGB/top_potsdam_X_Y_RGB.tif, 5_Labels_all/top_potsdam_X_Y_label.tif and"
        " 5_Labels_all_noBoundary/top_potsdam_X_Y_label_noBoundary.tif"
    )
    variants = tuple(BANDS)
    ids_left_out = ("7_10",)
    tiles: ClassVar[dict[str, list[str]]] = {
        "train": [
            *(f"{row}_{column}" for row in (2, 3, 4, 5) for column in (10, 11, 12)),
            *(f"{row}_{column}" for row in (6, 7) for column in (9, 10, 11, 12)),
        ],
        # The four tiles of the area's corner that lies away from the test tiles and borders on training on one side.
        "val": ["6_7", "6_8", "7_7", "7_8"],
        "test": ["2_13", "2_14", "3_13", "3_14", *(f"{r}_{c}" for r in (4, 5, 6) for c in (13, 14, 15)), "7_13"],
    }
    figures = (
        "mean F1 94.7 on the test tiles (clutter left out, eroded truth), from training on all training tiles with"
        " test-time augmentation"
    )

    def defaults(self, variant: str | None) -> dict[str, Any]:
        four = {"bands": [1, 2, 3, 4], "normalisation": "dataset"} if variant == "rgbir" else {}
        return super().defaults(variant) | four

    def is_image(self, path: Path, identifier: str, variant: str | None) -> bool:
        return path.name == f"top_potsdam_{identifier}_{BANDS[variant or 'rgb']}.tif"

    def is_mask(self, path: Path, identifier: str, eroded: bool) -> bool:
        return path.name == f"top_potsdam_{identifier}_label{'_noBoundary' if eroded else ''}.tif"
