"""What a check of a data set found, as tables and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from d2ls_fast.data.check import Check, SplitSummary
from d2ls_fast.data.scan import BandCounts

SHOWN_FAULTS, SHOWN_SIZES = 20, 12


def check_tables(check: Check) -> Iterator[Table]:
    """Tables of the splits, the classes, the bands and the unknown labels, as far as there is something to show."""
    filled = {name: split for name, split in check.splits.items() if split.images}
    if filled:
        yield _split_table(filled)
        yield _class_table(check, filled)
        yield _band_table(check, filled)
    if check.unknown:
        yield _unknown_table(check)


def fault_lines(check: Check) -> list[str]:
    """The faults, one a line; of many only the first."""
    lines = [f"fault: {fault}" for fault in check.faults[:SHOWN_FAULTS]]
    hidden = len(check.faults) - len(lines)
    return lines + ([f"and {hidden} more; --output DIR writes all of them into check.json"] if hidden else [])


def check_to_json(check: Check) -> dict[str, Any]:
    """Plain JSON values; shares are fractions, and what nothing was measured for is ``null``."""
    return {
        "classes": check.classes,
        "bands": check.bands,
        "splits": {name: _split_to_json(check, split) for name, split in check.splits.items()},
        "unknown_labels": {value: {"pixels": p, "files": f} for value, (p, f) in _by_pixels(check)},
        "faults": check.faults,
    }


def _split_to_json(check: Check, split: SplitSummary) -> dict[str, Any]:
    labelled = sum(split.class_pixels)
    return {
        "images": split.images,
        "pixels": split.pixels,
        "unlabelled_share": _ratio(split.unlabelled, split.pixels),
        "no_data_share": _ratio(split.no_data, split.pixels),
        "sizes": [
            {"height": height, "width": width, "images": count}
            for (height, width), count in split.sizes.most_common(SHOWN_SIZES)
        ],
        "distinct_sizes": len(split.sizes),
        "classes": {
            name: {"pixels": pixels, "share": _ratio(pixels, labelled), "images": images}
            for name, pixels, images in zip(check.classes, split.class_pixels, split.class_images, strict=False)
        },
        "bands": {
            str(number): {
                name: value if math.isfinite(value) else None
                for name, value in (
                    ("minimum", band.minimum),
                    ("maximum", band.maximum),
                    ("mean", band.mean),
                    ("std", band.std),
                )
            }
            for number, band in zip(check.bands, split.bands, strict=False)
        },
    }


def _split_table(splits: dict[str, SplitSummary]) -> Table:
    table = Table(title="splits")
    for heading in ("split", "images", "megapixels", "least size", "largest size", "unlabelled", "no data"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for name, split in splits.items():
        sizes = sorted(split.sizes, key=lambda size: (size[0] * size[1], size))
        table.add_row(
            name,
            str(split.images),
            f"{split.pixels / 1e6:,.1f}",
            "{}x{}".format(*sizes[0]),
            "{}x{}".format(*sizes[-1]),
            _percent(split.unlabelled, split.pixels),
            _percent(split.no_data, split.pixels),
        )
    return table


def _class_table(check: Check, splits: dict[str, SplitSummary]) -> Table:
    table = Table(title="classes: percent of the labelled pixels, and how many images hold them")
    table.add_column("class")
    for name in splits:
        table.add_column(name, justify="right")
        table.add_column(f"{name} images", justify="right")
    for index, name in enumerate(check.classes):
        cells: list[str] = []
        for split in splits.values():
            share = _percent(split.class_pixels[index], sum(split.class_pixels))
            cells += [share if split.class_pixels[index] else "never", str(split.class_images[index])]
        table.add_row(Text(name), *cells)
    return table


def _band_table(check: Check, splits: dict[str, SplitSummary]) -> Table:
    table = Table(title="bands: pixels with data, in raw units")
    for heading in ("split", "band", "minimum", "maximum", "mean", "deviation"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for name, split in splits.items():
        for number, band in zip(check.bands, split.bands, strict=True):
            table.add_row(name, str(number), *_band_cells(band))
    return table


def _band_cells(band: BandCounts) -> list[str]:
    values = (band.minimum, band.maximum, band.mean, band.std)
    return [f"{value:.6g}" if math.isfinite(value) else "-" for value in values]


def _unknown_table(check: Check) -> Table:
    table = Table(title="mask values or colours that no class declares")
    for heading in ("value", "pixels", "files"):
        table.add_column(heading, justify="left" if heading == "value" else "right")
    unknown = _by_pixels(check)
    for value, (pixels, files) in unknown[:SHOWN_FAULTS]:
        table.add_row(value, f"{pixels:,}", str(files))
    if len(unknown) > SHOWN_FAULTS:
        table.add_row(f"and {len(unknown) - SHOWN_FAULTS} more", "", "")
    return table


def _by_pixels(check: Check) -> list[tuple[str, tuple[int, int]]]:
    return sorted(check.unknown.items(), key=lambda entry: -entry[1][0])


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(part: int, whole: int) -> str:
    ratio = _ratio(part, whole)
    return "-" if ratio is None else f"{100 * ratio:.2f} %"
