"""Writing a submission: label maps in, an archive out that has its name only once it was checked."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from d2ls_fast.data.raster import read_image, read_mask
from d2ls_fast.errors import UserError
from d2ls_fast.files import replacing
from d2ls_fast.inference.predictor import Predictor
from d2ls_fast.inference.submissions.check import Advance, Checked, check_archive
from d2ls_fast.inference.submissions.contest import Contest, Files

LabelMaps = Iterable[tuple[str, NDArray[np.uint8]]]
"""Identifier of a test image and its class indices ``[h, w]``."""

_TIME = (1980, 1, 1, 0, 0, 0)  # the same maps give the same bytes


def write_submission(
    contest: Contest, images: Files, maps: LabelMaps, output: Path, advance: Advance | None = None
) -> Checked:
    """Write ``maps`` as the contest wants them to ``output`` (.zip), check it, and only then give it its name.

    Args:
        images: the test images.
        advance: called after every map written and again after every map checked.

    Raises:
        UserError: a map cannot be made, the archive cannot be written, or is found wrong.
    """
    with replacing(output) as temporary:
        with ZipFile(temporary, "w", ZIP_STORED) as archive:  # PNG is compressed already
            for identifier, labels in maps:
                stream = io.BytesIO()
                contest.picture(labels).save(stream, format="PNG")
                entry = ZipInfo(contest.member(identifier), _TIME)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, stream.getvalue())
                if advance is not None:
                    advance()
        return check_archive(temporary, contest.name, images, advance, shown_as=output)


def predicted_maps(predictor: Predictor, images: Files) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The model's labels of every image."""
    for identifier, path in images.items():
        pixels, _, _ = read_image(path, predictor.card.bands)
        yield identifier, predictor.predict(pixels)


def stored_maps(contest: Contest, maps: Files) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The class indices in label rasters: one band (or a palette), 0 to K - 1.

    Raises:
        UserError: unreadable, coloured, or with a value that is no class.
    """
    for identifier, path in maps.items():
        values, _, _ = read_mask(path)
        if values.ndim != 2 or values.dtype.kind not in "ui":
            raise UserError(
                f"{path}: not a raster of class indices but of {'colours' if values.ndim == 3 else values.dtype}; "
                "give label rasters as `d2ls-fast predict` writes them"
            )
        wrong = values[(values < 0) | (values >= len(contest.classes))]
        if wrong.size:
            meaning = ", which marks pixels without data: a contest wants a class everywhere" if wrong[0] == 255 else ""
            raise UserError(
                f"{path}: holds the value {wrong[0]} in {wrong.size} pixels{meaning}; {contest.title} has the classes "
                f"0 to {len(contest.classes) - 1}: write the indices in the order {', '.join(contest.classes)}"
            )
        yield identifier, values.astype(np.uint8)
