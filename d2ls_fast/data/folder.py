"""Finding image and mask files below a folder, pairing them, and checking them without reading pixels."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from d2ls_fast.data.config import DataSettings
from d2ls_fast.data.raster import EXTENSIONS, RasterHeader, read_header
from d2ls_fast.errors import UserError, raise_or_add

MASK_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".jp2")
"""JPEG is left out: it changes the stored values."""


@dataclass(frozen=True)
class Pair:
    """An image, its mask and what is known about them from their headers."""

    name: str
    """Path of the image below the root, with ``/``."""
    image: Path
    mask: Path
    header: RasterHeader
    height: int
    width: int
    """Size common to image and mask, in source pixels."""
    scale: float
    grey_as_rgb: bool = False
    """Whether the file has one band, which ``header`` then states as three equal ones."""
    padded_size: tuple[int, int] | None = None
    """Height and width with labelled padding; only :mod:`d2ls_fast.data.padding` gives any."""

    def bands_in_file(self, bands: Sequence[int]) -> list[int]:
        """Where ``bands`` are in the image file: the only one of a grey file that is read as RGB."""
        return [1] * len(bands) if self.grey_as_rgb else list(bands)

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width of what is trained on and scored."""
        return self.padded_size or self.size

    @property
    def size(self) -> tuple[int, int]:
        """Height and width after resampling by ``scale``."""
        return max(1, round(self.height * self.scale)), max(1, round(self.width * self.scale))


def natural_key(path: Path | str) -> list[tuple[int, int, str]]:
    """Sort key under which ``part_10`` follows ``part_9``."""
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def check_root(root: Path) -> None:
    """:class:`UserError` unless ``root`` is a folder."""
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "no such folder"
        raise UserError(f"{root}: {state}; set data.root to the folder that holds the images")


def list_images(settings: DataSettings, patterns: Sequence[str], key: str) -> list[Path]:
    """Image files that match any of the globs, in natural order; ``key`` is the setting named in errors.

    Raises:
        UserError: a glob is not relative or not valid, or a glob matches no image.
    """
    found: set[Path] = set()
    for pattern in patterns:
        try:
            hits = {
                path for path in settings.root.glob(pattern) if path.suffix.lower() in EXTENSIONS and path.is_file()
            }
        except (ValueError, NotImplementedError, IndexError) as error:
            raise UserError(f"{key}: {pattern!r} is not a glob below data.root ({error}); correct it") from None
        if not hits:
            raise UserError(
                f"{settings.root}: no image ({', '.join(EXTENSIONS)}) matches {key} = {pattern!r}; "
                "check data.root, the glob and data.image_folder"
            )
        found |= hits
    return sorted(found, key=natural_key)


def pool(settings: DataSettings) -> list[Path]:
    """All images of the data set: those of ``images``, or everything below folders named ``image_folder``."""
    if settings.images:
        return list_images(settings, settings.images, "data.images")
    return list_images(settings, [f"**/{settings.image_folder}/**/*"], "data.images")


def list_named(settings: DataSettings, list_file: Path, candidates: Iterable[Path]) -> list[Path]:
    """Images named in a text file, one a line: path below the root, with or without extension, file name or stem.

    Raises:
        UserError: the file is unreadable or empty, or a name fits no image or several.
    """
    by_name: dict[str, set[Path]] = defaultdict(set)
    for path in candidates:
        relative = path.relative_to(settings.root)
        for name in (relative.as_posix(), relative.with_suffix("").as_posix(), path.name, path.stem):
            by_name[name].add(path)
    try:
        lines = list_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{list_file}: cannot be read as text ({error}); give one image name a line") from None
    chosen: list[Path] = []
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        hits = by_name.get(name, set())
        if len(hits) != 1:
            state = "names no image" if not hits else f"fits {len(hits)} images; write the path below the root"
            raise UserError(f"{list_file}: line {number}: {name!r} {state} of {settings.root}; correct the line")
        chosen += hits
    if not chosen:
        raise UserError(f"{list_file}: names no image; write one name a line")
    return chosen


def make_pair(settings: DataSettings, image: Path, mask: Path | None = None) -> Pair:
    """Find the ``mask`` of ``image`` where it is not given, and compare the headers.

    Raises:
        UserError: no mask, several masks, an unreadable file, or sizes that differ by more than ``size_tolerance``.
    """
    mask = mask or _find_mask(settings, image)
    header, other = read_header(image), read_header(mask)
    off = max(abs(header.height - other.height), abs(header.width - other.width))
    if off > settings.size_tolerance:
        raise UserError(
            f"{mask}: mask is {other.height}x{other.width}, its image {image} is {header.height}x{header.width} "
            f"(height x width); make them equal, or set data.size_tolerance={off} to cut both to the common part"
        )
    grey = settings.grey_as_rgb and header.count == 1
    name = image.relative_to(settings.root).as_posix()
    factors = [factor for pattern, factor in settings.scales.items() if fnmatchcase(name, pattern)]
    return Pair(
        name=name,
        image=image,
        mask=mask,
        header=replace(header, bands=(1, 2, 3), count=3) if grey else header,
        height=min(header.height, other.height),
        width=min(header.width, other.width),
        scale=factors[0] if factors else settings.scale,
        grey_as_rgb=grey,
    )


def make_pairs(
    settings: DataSettings,
    images: Iterable[Path],
    faults: list[UserError] | None = None,
    masks: Mapping[Path, Path] | None = None,
) -> list[Pair]:
    """The pair of every image, with the mask that ``masks`` names for it, or the one found; where ``faults`` is given,
    errors are added to it and their images left out."""
    pairs: list[Pair] = []
    for image in images:
        try:
            pairs.append(make_pair(settings, image, masks[image] if masks else None))
        except UserError as error:
            raise_or_add(error, faults)
    return pairs


def common_bands(settings: DataSettings, pairs: Sequence[Pair]) -> list[int]:
    """The source bands to read, the same for every image.

    Raises:
        UserError: an image lacks a band that is asked for, or counts differ while ``bands`` is not set.
    """
    if settings.bands is not None:
        for pair in pairs:
            if max(settings.bands) > pair.header.count:
                raise UserError(
                    f"{pair.image}: has {pair.header.count} band(s), data.bands asks for band {max(settings.bands)}; "
                    "correct data.bands or the file"
                )
        return list(settings.bands)
    first = pairs[0]
    for pair in pairs:
        if pair.header.bands != first.header.bands:
            raise UserError(
                f"{pair.image}: has {len(pair.header.bands)} band(s), {first.image} has {len(first.header.bands)}; "
                "set data.bands to those that all images share, such as [1, 2, 3]"
            )
    return list(first.header.bands)


def check_scales(settings: DataSettings, pairs: Sequence[Pair]) -> None:
    """:class:`UserError` where a glob of ``scales`` matches none of the images (a misspelt one would pass unseen)."""
    for pattern in settings.scales:
        if not any(fnmatchcase(pair.name, pattern) for pair in pairs):
            raise UserError(f"data.scales: {pattern!r} matches no image below {settings.root}; correct the glob")


def check_masks_have_images(
    settings: DataSettings, pairs: Sequence[Pair], faults: list[UserError] | None = None
) -> None:
    """:class:`UserError` where a mask lies beside those in use without an image (lost, or misnamed).

    Images that no split names count as there; only mask folders of the images in use are looked at. Where ``faults`` is
    given, it receives an error for every such mask instead.
    """
    folders = {pair.mask.parent: pair.image.parent for pair in pairs}
    for masks, images in folders.items():
        stems = {path.stem for path in images.iterdir() if path.suffix.lower() in EXTENSIONS}
        for mask in sorted(masks.iterdir()):
            if mask.suffix.lower() not in MASK_EXTENSIONS or not mask.stem.endswith(settings.mask_suffix):
                continue
            stem = mask.stem.removesuffix(settings.mask_suffix) + settings.image_suffix
            if stem not in stems and not mask.name.startswith("."):
                error = UserError(
                    f"{mask}: mask without an image; looked for {images / stem}{{{','.join(EXTENSIONS)}}}: "
                    "add the image, or take the mask out"
                )
                raise_or_add(error, faults)


def _find_mask(settings: DataSettings, image: Path) -> Path:
    relative = PurePosixPath(image.relative_to(settings.root).as_posix())
    folders = list(relative.parent.parts)
    if settings.image_folder not in folders:
        raise UserError(
            f"{image}: no folder named {settings.image_folder!r} in its path below {settings.root}, so its mask cannot "
            "be found; set data.image_folder and data.mask_folder"
        )
    last = len(folders) - 1 - folders[::-1].index(settings.image_folder)
    folders[last] = settings.mask_folder
    stem = image.stem
    if settings.image_suffix:
        if not stem.endswith(settings.image_suffix):
            raise UserError(
                f"{image}: its name does not end in data.image_suffix = {settings.image_suffix!r}; correct it"
            )
        stem = stem.removesuffix(settings.image_suffix)
    base = settings.root.joinpath(*folders) / (stem + settings.mask_suffix)
    candidates = [base.with_name(base.name + extension) for extension in MASK_EXTENSIONS]
    hits = [path for path in [*candidates, *(p.with_suffix(p.suffix.upper()) for p in candidates)] if path.is_file()]
    hits = [path for index, path in enumerate(hits) if not any(path.samefile(other) for other in hits[:index])]
    if not hits:
        raise UserError(
            f"{image}: has no mask; looked for {base}{{{','.join(MASK_EXTENSIONS)}}}: add it, take the image out, or "
            "set data.mask_folder / data.mask_suffix"
        )
    if len(hits) > 1:
        raise UserError(f"{image}: has {len(hits)} masks ({', '.join(hit.name for hit in hits)}); leave one")
    return hits[0]
