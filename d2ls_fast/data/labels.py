"""Stored mask values or colours -> class indices."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from d2ls_fast.data.config import DataSettings
from d2ls_fast.data.palettes import IGNORE_INDEX, Colour, hex_code
from d2ls_fast.data.raster import Mask, read_mask
from d2ls_fast.errors import UserError

Labels = npt.NDArray[np.uint8]
_UNKNOWN = -1


class UnknownLabels(UserError):
    """A mask holds values or colours that no class declares.

    Attributes:
        labels: of the mask, with 255 where the value is unknown.
        counts: pixels of each unknown value or colour.
    """

    def __init__(self, message: str, labels: Labels, counts: dict[str, int]) -> None:
        super().__init__(message)
        self.labels = labels
        self.counts = counts


class MaskReader:
    """Reads masks as declared in :class:`DataSettings`: uint8 [h, w], class index 0..K-1 or 255 for unlabelled."""

    def __init__(self, settings: DataSettings) -> None:
        self._kind = settings.masks
        self._ignore_unknown = settings.ignore_unknown
        self._ignored_colours = settings.ignored_colours
        self._colours = settings.colours if settings.has_colours else None
        self._colour_table: npt.NDArray[np.int16] | None = None
        declared = [entry.value for entry in settings.classes]
        self._has_values = any(value is not None for value in declared)
        self._value_of: dict[int, int] = {}
        for index in range(len(settings.class_names)):
            given = declared[index] if self._has_values else None
            for value in given if given is not None else [index]:
                self._value_of[value] = index
        for value in [255] if settings.ignore_values is None else settings.ignore_values:
            if settings.ignore_values is not None or value not in self._value_of:
                self._value_of[value] = IGNORE_INDEX

    def read(self, path: Path) -> Labels:
        """Labels of the mask at ``path``.

        Raises:
            UnknownLabels: an undeclared colour or value (named with its count).
            UserError: unreadable, or the wrong kind of mask.
        """
        return self.labels(read_mask(path), path)

    def labels(self, mask: Mask, path: Path) -> Labels:
        """Labels of a mask (or a part of one) that was read from ``path``; raises like :meth:`read`."""
        values, palette, nodata = mask
        if values.ndim == 3:
            if self._kind == "index":
                raise UserError(f"{path}: an RGB mask, but masks: index is set; set masks: colour and declare colours")
            return self._from_colours(values, path)
        if palette is not None and self._palette_means_colours():
            return self._from_colours(palette[values], path, without_label=values == nodata)
        if self._kind == "colour":
            raise UserError(f"{path}: a single-band mask, but masks: colour is set; set masks: index")
        return self._from_values(values, nodata, path)

    def _palette_means_colours(self) -> bool:
        if self._kind == "auto":
            return self._colours is not None and not self._has_values
        return self._kind == "colour"

    def _from_values(self, values: npt.NDArray[Any], nodata: float | None, path: Path) -> Labels:
        table = dict(self._value_of)
        if nodata is not None and np.isfinite(nodata) and int(nodata) not in table:
            table[int(nodata)] = IGNORE_INDEX
        labels = np.full(values.shape, IGNORE_INDEX, np.uint8)
        known = ~np.isfinite(values)  # NaN marks pixels without data in floating rasters
        for value, index in table.items():
            found = values == value
            known |= found
            if index != IGNORE_INDEX:
                labels[found] = index
        if not self._ignore_unknown and not known.all():
            stray, counts = np.unique(values[~known], return_counts=True)
            worst = int(counts.argmax())
            raise UnknownLabels(
                f"{path}: value {stray[worst].item()} is in {counts[worst]} pixels but in no class{_others(stray)}; "
                f"declared are {_shorten(sorted(table))}: give a class this value, add it to ignore_values, or set "
                "ignore_unknown: true",
                labels,
                {str(value): int(count) for value, count in zip(stray, counts, strict=True)},
            )
        return labels

    def _table(self) -> npt.NDArray[np.int16]:
        """Class index of each of the 2^24 colours: one look-up a pixel, however many classes there are."""
        if self._colour_table is None:
            assert self._colours is not None
            table = np.full(2**24, _UNKNOWN, np.int16)
            table[[_code(colour) for colour in self._ignored_colours]] = IGNORE_INDEX
            table[[_code(colour) for colour in self._colours]] = np.arange(len(self._colours))
            self._colour_table = table  # whole at once: other threads may be reading masks
        return self._colour_table

    def _from_colours(
        self, values: npt.NDArray[Any], path: Path, without_label: npt.NDArray[np.bool_] | bool = False
    ) -> Labels:
        if self._colours is None:
            raise UserError(f"{path}: a colour mask, but not every class has a colour; declare colours for all classes")
        if values.dtype != np.uint8:
            raise UserError(f"{path}: a colour mask of type {values.dtype}; colour masks have 8 bits a band")
        codes = _pack(values)
        indices = self._table()[codes]
        indices[np.broadcast_to(without_label, codes.shape)] = IGNORE_INDEX
        known = indices != _UNKNOWN
        labels = indices.astype(np.uint8)  # -1 becomes 255, the ignore index
        if not self._ignore_unknown and not known.all():
            stray, counts = np.unique(codes[~known], return_counts=True)
            worst = int(counts.argmax())
            shades = [hex_code(int(code).to_bytes(3, "big")) for code in stray]
            declared = _shorten(hex_code(colour) for colour in [*self._colours, *self._ignored_colours])
            raise UnknownLabels(
                f"{path}: colour {shades[worst]} is in {counts[worst]} pixels but in no class{_others(stray)}; "
                f"declared are {declared}: give a class this colour, add it to ignore_colours, or set "
                "ignore_unknown: true (masks: index if the stored indices are meant)",
                labels,
                dict(zip(shades, counts.tolist(), strict=True)),
            )
        return labels


def _pack(colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """[h, w, 3] -> [h, w], red in the highest byte."""
    codes = colours[..., 0].astype(np.uint32)
    for band in (1, 2):
        codes <<= 8
        codes |= colours[..., band]
    return codes


def _code(colour: Colour) -> int:
    return (colour[0] << 16) | (colour[1] << 8) | colour[2]


def _others(stray: npt.NDArray[Any]) -> str:
    return f" (and {len(stray) - 1} more)" if len(stray) > 1 else ""


def _shorten(values: Iterable[object]) -> str:
    shown = [str(value) for value in values]
    return ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "")
