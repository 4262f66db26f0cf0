"""Which images train, validate and test: explicit lists, or a rule that keeps neighbours together."""

from __future__ import annotations

import logging
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from d2ls_fast.data.config import DataSettings, SplitSettings
from d2ls_fast.data.folder import Pair, check_root, list_images, list_named, make_pairs, natural_key, pool
from d2ls_fast.data.published import PublishedDataset
from d2ls_fast.errors import UserError

log = logging.getLogger(__name__)

# Tiles that share less than this part of their area count as neighbours, not as copies of each other.
_SHARED_AREA = 0.01


@dataclass
class Split:
    """The pairs of each split."""

    train: list[Pair] = field(default_factory=list)
    val: list[Pair] = field(default_factory=list)
    test: list[Pair] = field(default_factory=list)

    @property
    def all(self) -> list[Pair]:
        """Every pair, training first."""
        return [*self.train, *self.val, *self.test]


def split_pairs(settings: DataSettings, faults: list[UserError] | None = None) -> Split:
    """Find, pair and divide the images of a data set.

    Args:
        faults: where given, receives the errors of single files, which are then left out, instead of their being
            raised.

    Raises:
        UserError: see :mod:`d2ls_fast.data.folder`; an image in two splits; nothing left to train or to hold out.
    """
    check_root(settings.root)
    if settings.published is not None:
        return _by_publishers(settings, settings.published, faults)
    if settings.split is None:
        return _by_lists(settings, faults)
    pairs = make_pairs(settings, pool(settings), faults)
    return split_by_rule(pairs, settings.split, settings.root)


def split_by_rule(pairs: Sequence[Pair], rule: SplitSettings, root: Path) -> Split:
    """Divide ``pairs`` by ``rule``; ``root`` is named in errors."""
    groups = [list(pairs)] if rule.by == "random" else _neighbour_groups(pairs)
    split = Split()
    seen = 0
    for group in groups:
        if rule.by == "random":
            random.Random(rule.seed).shuffle(group)
        turn = len(group) - _round(rule.shift * len(group))
        order = group[turn:] + group[:turn]
        # Shares are rounded on the running total, so that many small folders together still give the right share.
        seen += len(order)
        tests = min(len(order), max(0, _round(rule.test * seen) - len(split.test)))
        vals = min(len(order) - tests, max(0, _round(rule.val * seen) - len(split.val)))
        split.train += order[: len(order) - tests - vals]
        split.val += order[len(order) - tests - vals : len(order) - tests]
        split.test += order[len(order) - tests :]
    if rule.by == "spatial":
        split.train = _apart(split.train, split.val + split.test, "training")
        split.val = _apart(split.val, split.test, "validation")
    for name, share, chosen in (
        ("train", 1.0, split.train),
        ("val", rule.val, split.val),
        ("test", rule.test, split.test),
    ):
        if share > 0.0 and not chosen:
            remedy = "lower data.split.val and test" if name == "train" else f"raise data.split.{name}"
            raise UserError(
                f"{root}: the split of {len(pairs)} image(s) leaves none for {name}; {remedy} or add images"
            )
    return split


def _by_publishers(settings: DataSettings, source: PublishedDataset, faults: list[UserError] | None) -> Split:
    split = Split()
    unknown = set(settings.leave_out or ())
    made: dict[tuple[Path, Path], Pair] = {}  # a subset may be in two splits
    for name, chosen in source.subsets(settings.protocol)._asdict().items():
        eroded = bool(settings.eroded) and name != "train"
        for subset in chosen:
            found = source.match(settings.root, subset, settings.variant, eroded, settings.leave_out or (), faults)
            unknown -= found.left_out
            new = [image for image, mask in found.masks.items() if (image, mask) not in made]
            made |= {(pair.image, pair.mask): pair for pair in make_pairs(settings, new, faults, found.masks)}
            getattr(split, name).extend(made[files] for files in found.masks.items() if files in made)
    if unknown:
        raise UserError(f"data.leave_out: {source.title} has no image {sorted(unknown)[0]!r}; correct it")
    return split


def _by_lists(settings: DataSettings, faults: list[UserError] | None) -> Split:
    chosen: dict[str, list[Path]] = {}
    for name in ("train", "val", "test"):
        patterns: list[str] = getattr(settings, name) or []
        chosen[name] = _resolve(settings, patterns, f"data.{name}")
    if not chosen["train"]:
        raise UserError(f"{settings.root}: data.train names no image; give at least one glob")
    if not settings.allow_overlap:
        _refuse_overlap(chosen)
    images = dict.fromkeys(path for paths in chosen.values() for path in paths)
    made = {pair.image: pair for pair in make_pairs(settings, images, faults)}
    return Split(**{name: [made[path] for path in paths if path in made] for name, paths in chosen.items()})


def _resolve(settings: DataSettings, patterns: Sequence[str], key: str) -> list[Path]:
    globs = [pattern for pattern in patterns if not pattern.lower().endswith(".txt")]
    paths = list_images(settings, globs, key)
    for entry in patterns:
        if entry in globs:
            continue
        inside = settings.root / entry
        list_file = inside if inside.is_file() else Path(entry)
        if not list_file.is_file():
            raise UserError(f"{key}: no list file {entry}, neither below {settings.root} nor here; correct the path")
        paths += list_named(settings, list_file, pool(settings))
    return sorted(set(paths), key=natural_key)


def _refuse_overlap(chosen: dict[str, list[Path]]) -> None:
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = sorted(set(chosen[first]) & set(chosen[second]))
        if shared:
            raise UserError(
                f"{shared[0]}: in both data.{first} and data.{second} ({len(shared)} image(s) are), so scores would "
                "mislead; correct the lists, or set data.allow_overlap: true"
            )


def _neighbour_groups(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Pairs in an order in which close ones are neighbours: a group for each coordinate system, else for each
    folder."""
    located: dict[str, list[Pair]] = defaultdict(list)
    named: dict[Path, list[Pair]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: natural_key(pair.name)):
        if pair.header.georeference is not None:
            located[str(pair.header.georeference.crs)].append(pair)
        else:
            named[pair.image.parent].append(pair)
    return [_spatial_order(group) for group in located.values()] + list(named.values())


def _spatial_order(pairs: list[Pair]) -> list[Pair]:
    boxes = np.array([bounds(pair) for pair in pairs])
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    extent = boxes[:, 2:].max(0) - boxes[:, :2].min(0)
    along = int(extent[1] > extent[0])
    step = float(np.median(boxes[:, 2 + along] - boxes[:, along]))
    strip = np.floor((centres[:, along] - centres[:, along].min()) / step + 0.5)
    order = np.lexsort((centres[:, 1 - along], strip))
    return [pairs[index] for index in order]


def bounds(pair: Pair) -> tuple[float, float, float, float]:
    """Least x, least y, greatest x, greatest y of a georeferenced pair, in the units of its coordinate system."""
    assert pair.header.georeference is not None
    transform = pair.header.georeference.transform
    corners = [transform * (column, row) for column in (0, pair.header.width) for row in (0, pair.header.height)]
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    return min(xs), min(ys), max(xs), max(ys)


def _apart(pairs: list[Pair], held_out: list[Pair], what: str) -> list[Pair]:
    """``pairs`` without those that cover ground of ``held_out`` (patches cut with overlap)."""
    boxes: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    for pair in held_out:
        if pair.header.georeference is not None:
            boxes[str(pair.header.georeference.crs)].append(bounds(pair))
    kept = [
        pair
        for pair in pairs
        if pair.header.georeference is None
        or not _shares_ground(bounds(pair), np.array(boxes[str(pair.header.georeference.crs)]).reshape(-1, 4))
    ]
    if len(kept) < len(pairs):
        log.warning("%d %s image(s) left out: they overlap held-out ground", len(pairs) - len(kept), what)
    return kept


def _shares_ground(box: tuple[float, float, float, float], others: np.ndarray) -> bool:
    own = np.array(box)
    sides = np.minimum(own[2:], others[:, 2:]) - np.maximum(own[:2], others[:, :2])
    shared = np.clip(sides, 0.0, None).prod(axis=1)
    return bool((shared > _SHARED_AREA * (own[2:] - own[:2]).prod()).any())


def _round(value: float) -> int:
    return math.floor(value + 0.5)
