"""The contests' rules, checked on a finished archive of any origin. Shares nothing with what writes archives."""

from __future__ import annotations

import re
import stat
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, LargeZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from d2ls_fast.data.palettes import PALETTES, hex_code
from d2ls_fast.data.raster import read_header
from d2ls_fast.errors import UserError
from d2ls_fast.inference.submissions.png import GREY, RGB, read_png

Advance = Callable[[], None]
_SLACK = 2**16  # bytes of a PNG beside its pixels: chunks, and what deflate adds to noise


@dataclass(frozen=True)
class Rule:
    """What a contest's archive holds.

    Attributes:
        member: names of its files; the groups joined by ``/`` identify the test image.
        form: the same in words.
        codes: the value of each class; of RGB red * 65536 + green * 256 + blue.
    """

    title: str
    member: re.Pattern[str]
    form: str
    colour_type: int
    codes: tuple[int, ...]

    @property
    def channels(self) -> int:
        return 3 if self.colour_type == RGB else 1

    def shown(self, code: int) -> str:
        if self.colour_type == GREY:
            return f"value {code}"
        return f"colour {hex_code(code.to_bytes(3, 'big'))}"


RULES = {
    "loveda": Rule(
        "LoveDA",
        re.compile(r"([0-9]+)\.png"),
        "ID.png for every test image ID.png, in no folder",
        GREY,
        tuple(range(7)),
    ),
    "uavid": Rule(
        "UAVid",
        re.compile(r"(seq[0-9]+)/Labels/([0-9]+)\.png"),
        "seqN/Labels/NNNNNN.png for every test image seqN/Images/NNNNNN.png",
        RGB,
        tuple(red << 16 | green << 8 | blue for red, green, blue in PALETTES["uavid"].colours),
    ),
}


@dataclass(frozen=True)
class Checked:
    """A faultless archive: how many pictures it holds, its bytes, and each class's share of the pixels, 0..1."""

    pictures: int
    size: int
    shares: list[float]


def check_archive(
    archive: Path,
    contest: str,
    images: Mapping[str, Path],
    advance: Advance | None = None,
    shown_as: Path | None = None,
) -> Checked:
    """Read the whole archive as the contest's scorer would, without unpacking more than its pictures can need.

    Args:
        contest: a key of :data:`RULES`.
        images: the test images by identifier: names, counts and sizes are held against them.
        advance: called after every picture.
        shown_as: the name for messages, where the archive does not have its own yet.

    Raises:
        UserError: the first fault, with the archive, the file in it and the remedy.
    """
    name, rule = shown_as or archive, RULES[contest]
    if not archive.is_file():
        raise UserError(f"{name}: no such archive; check the path")
    sizes = {}
    for identifier, path in images.items():
        header = read_header(path)
        sizes[identifier] = (header.height, header.width)
    size, most = archive.stat().st_size, sum(_most_bytes(rule, shape) for shape in sizes.values())
    if size > most:
        raise UserError(
            f"{name}: has {size} bytes, {len(sizes)} pictures of these sizes need at most {most}; it holds something "
            "else too: zip the label maps only"
        )
    counts = np.zeros(len(rule.codes), np.int64)
    try:
        with ZipFile(archive) as opened:
            members = _members(name, rule, opened.infolist(), images)
            for identifier, member in members.items():
                data = _unpacked(opened, member, _most_bytes(rule, sizes[identifier]), name)
                place = f"{name}: {member.filename!r}"
                pixels = read_png(data, rule.colour_type, sizes[identifier], place)
                counts += _class_counts(rule, pixels, place)
                if advance is not None:
                    advance()
    except (BadZipFile, LargeZipFile, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: not a whole zip archive ({error}); zip the label maps again") from None
    return Checked(len(members), size, (counts / counts.sum()).tolist())


def _most_bytes(rule: Rule, shape: tuple[int, int]) -> int:
    pixels = shape[0] * (shape[1] * rule.channels + 1)  # a byte a row tells how it is filtered
    return pixels + pixels // 100 + _SLACK


def _members(name: Path, rule: Rule, entries: list[ZipInfo], images: Mapping[str, Path]) -> dict[str, ZipInfo]:
    """The archive's files by identifier of their image, all of them there and nothing else."""
    members: dict[str, ZipInfo] = {}
    for entry in entries:
        place, match = f"{name}: {entry.filename!r}", rule.member.fullmatch(entry.filename)
        identifier = "/".join(match.groups()) if match else None
        if entry.is_dir():
            raise UserError(f"{place} is a folder entry; {rule.title} wants {rule.form}: zip the files alone (zip -D)")
        if identifier is None:
            raise UserError(f"{place} does not belong in it; {rule.title} wants {rule.form} and no other file")
        if identifier not in images:
            raise UserError(f"{place} is the map of no test image ({len(images)} were found); take it out")
        if identifier in members:
            raise UserError(f"{place} is in it twice; zip every label map once")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise UserError(f"{place} is a symbolic link; zip the file itself")
        if entry.flag_bits & 0x1:
            raise UserError(f"{place} is encrypted; zip without a password")
        if entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            raise UserError(f"{place} is packed by method {entry.compress_type}; zip it by deflate, or stored")
        members[identifier] = entry
    missing = [identifier for identifier in images if identifier not in members]
    if missing:
        raise UserError(
            f"{name}: no map of test image {missing[0]} ({len(missing)} of {len(images)} are missing); "
            f"{rule.title} wants {rule.form}"
        )
    return members


def _unpacked(archive: ZipFile, member: ZipInfo, most: int, name: Path) -> bytes:
    """The file's bytes; never more than it declares, which is bounded first."""
    if member.file_size > most:
        raise UserError(
            f"{name}: {member.filename!r} unpacks to {member.file_size} bytes, a map of its test image has at most "
            f"{most}; it is no label map: write it again"
        )
    try:
        with archive.open(member) as stream:
            return stream.read()
    except (BadZipFile, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"{name}: {member.filename!r} is damaged ({error}); zip the label maps again") from None


def _class_counts(rule: Rule, pixels: NDArray[np.uint8], place: str) -> NDArray[np.int64]:
    """Pixels of each class; every pixel must be of one."""
    codes = np.zeros(pixels.shape[:2], np.uint32)
    for channel in range(rule.channels):
        codes <<= 8
        codes |= pixels.reshape(*codes.shape, -1)[..., channel]
    counts = np.array([np.count_nonzero(codes == code) for code in rule.codes], np.int64)
    strange = codes.size - int(counts.sum())
    if strange:
        first = int(codes[~np.isin(codes, rule.codes)][0])
        known = ", ".join(rule.shown(code).split()[1] for code in rule.codes)
        raise UserError(
            f"{place} has {strange} pixels that are no class, one of {rule.shown(first)}; {rule.title} knows {known}"
        )
    return counts
