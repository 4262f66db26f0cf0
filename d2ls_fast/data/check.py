"""Scanning a data set before it is trained on: what it holds, and everything that is wrong with it at once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from d2ls_fast.data import normalisation
from d2ls_fast.data.config import DataSettings
from d2ls_fast.data.folder import Pair, check_masks_have_images, check_scales, common_bands
from d2ls_fast.data.scan import BandCounts, PairScanner, Scan
from d2ls_fast.data.scenes import SceneReader
from d2ls_fast.data.splits import Split, split_pairs
from d2ls_fast.errors import UserError

THREADS = 4
"""Images in memory at a time at most."""

T = TypeVar("T")
Track = Callable[[Iterable[Scan], int], Iterable[Scan]]


@dataclass
class SplitSummary:
    """What the readable pairs of a split hold, in source pixels."""

    images: int = 0
    pixels: int = 0
    class_pixels: list[int] = field(default_factory=list)
    """Labelled pixels of each class."""
    class_images: list[int] = field(default_factory=list)
    """Images that hold each class."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Images of each height and width."""
    bands: list[BandCounts] = field(default_factory=list)
    no_data: int = 0
    """Pixels without data."""

    def add(self, scan: Scan) -> None:
        """Count one pair in."""
        counts = scan.class_pixels
        self.images += 1
        self.pixels += scan.size[0] * scan.size[1]
        self.no_data += scan.no_data
        self.sizes[scan.size] += 1
        self.class_pixels = [a + b for a, b in zip(self.class_pixels or [0] * len(counts), counts, strict=True)]
        self.class_images = [a + (b > 0) for a, b in zip(self.class_images or [0] * len(counts), counts, strict=True)]
        self.bands = [a + b for a, b in zip(self.bands, scan.bands, strict=True)] if self.bands else list(scan.bands)

    @property
    def unlabelled(self) -> int:
        """Pixels without a label."""
        return self.pixels - sum(self.class_pixels)


@dataclass
class Check:
    """The result of a scan.

    Attributes:
        splits: by name; faulty pairs are in none.
        bands: source bands in model order.
        faults: what has to be mended, each in one line that names the file.
        unknown: pixels and files of every mask value or colour that no class declares.
        shown: scans with pictures, by split.
    """

    classes: list[str]
    palette: list[tuple[int, int, int]]
    bands: list[int] = field(default_factory=list)
    splits: dict[str, SplitSummary] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    unknown: dict[str, tuple[int, int]] = field(default_factory=dict)
    shown: dict[str, list[Scan]] = field(default_factory=dict)

    def add_faults(self, faults: Iterable[UserError]) -> None:
        """Take note of ``faults``, each once."""
        self.faults = list(dict.fromkeys([*self.faults, *map(str, faults)]))


def check_dataset(settings: DataSettings, pictures: int = 0, track: Track | None = None) -> Check:
    """Read every file of a data set once.

    Args:
        pictures: images of each split, evenly spread, whose scans keep a picture.
        track: wraps the scans, of which it is told the number, to show progress.

    Raises:
        UserError: nothing can be checked: no such folder, no image, a list that names none.
    """
    check = Check(settings.class_names, settings.colours)
    faults: list[UserError] = []
    split = _find(settings, faults)
    pairs = {name: _usable(settings, getattr(split, name), split.all, faults) for name in ("train", "val", "test")}
    usable = [pair for chosen in pairs.values() for pair in chosen]
    if usable:
        check.bands = common_bands(settings, usable)
        _check_normalisation(settings, split.train, check.bands, faults)
    check.add_faults(faults)

    picked = {_key(pair) for chosen in pairs.values() for pair in _spread(chosen, pictures)}
    distinct = list({_key(pair): pair for pair in usable}.values())
    scanner = PairScanner(settings, check.bands)
    scans: Iterable[Scan] = _in_threads(lambda pair: scanner.scan(pair, _key(pair) in picked), distinct)
    found = {_key(scan.pair): scan for scan in (track(scans, len(distinct)) if track else scans)}
    for name, chosen in pairs.items():
        summary, members = SplitSummary(), [found[_key(pair)] for pair in chosen]
        for scan in members:
            if scan.readable:
                summary.add(scan)
        check.splits[name] = summary
        check.shown[name] = [scan for scan in members if scan.picture is not None]
    for scan in found.values():
        check.add_faults(scan.faults)
        for value, count in scan.unknown.items():
            pixels, files = check.unknown.get(value, (0, 0))
            check.unknown[value] = (pixels + count, files + 1)
    return check


def _find(settings: DataSettings, faults: list[UserError]) -> Split:
    try:
        split = split_pairs(settings, faults)
    except UserError as error:
        if not faults:
            raise
        faults.append(error)  # such as nothing being left to train on, because of the faults before
        return Split()
    try:
        check_scales(settings, split.all)
    except UserError as error:
        faults.append(error)
    if settings.published is None:
        check_masks_have_images(settings, split.all, faults)
    return split


def _usable(
    settings: DataSettings, pairs: Sequence[Pair], everything: Sequence[Pair], faults: list[UserError]
) -> list[Pair]:
    """``pairs`` whose bands are those asked for, or those that most images have."""
    if not everything:
        return []
    layout, _ = Counter(pair.header.bands for pair in everything).most_common(1)[0]
    usual = [pair for pair in everything if pair.header.bands == layout][: 1 if settings.bands is None else 0]
    usable = []
    for pair in pairs:
        try:
            common_bands(settings, [*usual, pair])
            usable.append(pair)
        except UserError as error:
            faults.append(error)
    return usable


def _check_normalisation(
    settings: DataSettings, train: Sequence[Pair], bands: list[int], faults: list[UserError]
) -> None:
    if settings.mean is not None or settings.normalisation in ("imagenet", "half"):
        try:
            normalisation.resolve(settings, train, bands, SceneReader(settings, bands))
        except UserError as error:
            faults.append(error)


def _key(pair: Pair) -> tuple[Path, Path]:
    return pair.image, pair.mask


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` of ``items``, evenly spaced."""
    number = min(count, len(items))
    return [items[round(position)] for position in np.linspace(0, len(items) - 1, number)]


def _in_threads(scan: Callable[[Pair], Scan], pairs: Sequence[Pair]) -> Iterator[Scan]:
    """Scans in the order of ``pairs``; few are under way at a time, so that an interruption ends soon."""
    threads = min(THREADS, os.cpu_count() or 1)
    rest = iter(pairs)
    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(scan, pair) for pair in islice(rest, 2 * threads)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(scan, pair) for pair in islice(rest, 1)]
