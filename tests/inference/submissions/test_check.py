"""A right archive of any origin passes; every way of being wrong is one line that names the file."""

from __future__ import annotations

import io
import stat
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_BZIP2, ZipFile, ZipInfo

import numpy as np
import pytest
from PIL import Image
from published_trees import SIZE
from submission_files import COLOURS, MEMBERS, Published, every_class, png, right_files, zipped

from d2ls_fast.errors import UserError
from d2ls_fast.inference.submissions.check import check_archive

BOTH = pytest.mark.parametrize("name", ["loveda", "uavid"])
FIRST = {name: next(iter(members.values())) for name, members in MEMBERS.items()}


@pytest.fixture
def refused(published: Callable[[str], Published], tmp_path: Path) -> Callable[..., str]:
    """``refused(contest, files)``: the one line about an archive of these files, which names the archive."""

    def check(contest: str, files: dict[str, bytes] | Path) -> str:
        archive = files if isinstance(files, Path) else zipped(tmp_path / "archive.zip", files)
        with pytest.raises(UserError) as caught:
            check_archive(archive, contest, published(contest).images)
        line = str(caught.value)
        assert line.startswith(f"{archive}: ") and "\n" not in line
        return line.removeprefix(f"{archive}: ")

    return check


@BOTH
def test_a_right_archive_passes(name: str, published: Callable[[str], Published], tmp_path: Path) -> None:
    archive = zipped(tmp_path / "right.zip", right_files(name))
    checked = check_archive(archive, name, published(name).images)
    pixels = np.concatenate([every_class(name, seed).reshape(-1) for seed in range(2)])
    np.testing.assert_allclose(checked.shares, np.bincount(pixels) / pixels.size)
    assert (checked.pictures, checked.size) == (2, archive.stat().st_size)


@BOTH
def test_a_missing_map(name: str, refused: Callable[..., str]) -> None:
    files = right_files(name)
    del files[FIRST[name]]
    assert refused(name, files).startswith(f"no map of test image {next(iter(MEMBERS[name]))} (1 of 2 are missing)")
    assert refused(name, {}).startswith("no map of test image") and "(2 of 2" in refused(name, {})


@BOTH
@pytest.mark.parametrize("stray", ["notes.txt", "__MACOSX/._6.png", "../6.png", "/6.png", "6.PNG", "６.png", "6.png\n"])
def test_a_file_that_is_no_map(name: str, stray: str, refused: Callable[..., str]) -> None:
    line = refused(name, {**right_files(name), stray: b""})
    assert line.startswith(f"{stray!r} does not belong in it")


def test_a_map_of_no_test_image(refused: Callable[..., str]) -> None:
    assert "'8.png' is the map of no test image" in refused("loveda", {**right_files("loveda"), "8.png": b""})
    stray = "seq22/Labels/000000.png"
    assert f"{stray!r} is the map of no test image" in refused("uavid", {**right_files("uavid"), stray: b""})


@BOTH
def test_maps_in_the_wrong_folder(name: str, refused: Callable[..., str]) -> None:
    files = {f"submission/{member}": content for member, content in right_files(name).items()}
    assert refused(name, files).startswith(f"'submission/{FIRST[name]}' does not belong in it")


def test_maps_under_the_names_of_the_images(refused: Callable[..., str]) -> None:
    files = {member.replace("Labels", "Images"): content for member, content in right_files("uavid").items()}
    assert "'seq21/Images/000000.png' does not belong in it; UAVid wants seqN/Labels" in refused("uavid", files)


def test_a_folder_entry(refused: Callable[..., str]) -> None:
    line = refused("uavid", {"seq21/Labels/": b"", **right_files("uavid")})
    assert line.startswith("'seq21/Labels/' is a folder entry") and "zip -D" in line


def written(path: Path, contest: str, change: Callable[[ZipInfo], object]) -> Path:
    """A right archive, but for what ``change`` does to the entry of its first file."""
    with ZipFile(path, "w") as archive:
        for name, content in right_files(contest).items():
            entry = ZipInfo(name)
            if name == FIRST[contest]:
                change(entry)
            archive.writestr(entry, content)
    return path


def test_a_file_that_comes_twice(refused: Callable[..., str], tmp_path: Path) -> None:
    files = right_files("loveda")
    archive = zipped(tmp_path / "archive.zip", files)
    with warnings.catch_warnings(), ZipFile(archive, "a") as opened:
        warnings.simplefilter("ignore")  # the library's own word on this
        opened.writestr("6.png", files["6.png"])
    assert refused("loveda", archive).startswith("'6.png' is in it twice")


def test_a_symbolic_link(refused: Callable[..., str], tmp_path: Path) -> None:
    def link(entry: ZipInfo) -> None:
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16

    assert "'6.png' is a symbolic link" in refused("loveda", written(tmp_path / "archive.zip", "loveda", link))


def test_a_method_that_not_every_reader_knows(refused: Callable[..., str], tmp_path: Path) -> None:
    def pack(entry: ZipInfo) -> None:
        entry.compress_type = ZIP_BZIP2

    assert "'6.png' is packed by method 12" in refused("loveda", written(tmp_path / "archive.zip", "loveda", pack))


def patched(archive: Path, offset_in_entry: int, value: bytes) -> Path:
    """``archive`` with bytes of its first file's entry in the directory at the end changed."""
    data = bytearray(archive.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + offset_in_entry : entry + offset_in_entry + len(value)] = value
    archive.write_bytes(data)
    return archive


def test_an_encrypted_file(refused: Callable[..., str], tmp_path: Path) -> None:
    archive = patched(zipped(tmp_path / "archive.zip", right_files("loveda")), 8, b"\x01\x00")
    assert "'6.png' is encrypted" in refused("loveda", archive)


def test_a_bomb_is_not_unpacked(refused: Callable[..., str], tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    zipped(bomb, {**right_files("loveda"), "6.png": bytes(50_000_000)})
    assert bomb.stat().st_size < 60_000
    assert refused("loveda", bomb).startswith("'6.png' unpacks to 50000000 bytes")
    # One that lies about it is read no further than it says.
    lying = patched(bomb, 24, struct.pack("<I", 1000))
    assert refused("loveda", lying).startswith("'6.png' is damaged")


def test_a_picture_that_would_be_huge_is_not_unpacked(refused: Callable[..., str]) -> None:
    huge = raw_png(50_000, 50_000, 0, b"")
    assert "'6.png' is 50000 x 50000, its test image 40 x 64 pixels" in refused(
        "loveda", {**right_files("loveda"), "6.png": huge}
    )


def test_too_much_beside_the_pictures(refused: Callable[..., str], tmp_path: Path) -> None:
    archive = zipped(tmp_path / "archive.zip", right_files("loveda"))
    archive.write_bytes(bytes(1_000_000) + archive.read_bytes())
    assert "bytes, 2 pictures of these sizes need at most" in refused("loveda", archive)


def test_what_is_no_archive(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no such archive" in refused("loveda", tmp_path / "none.zip")
    text = tmp_path / "text.zip"
    text.write_text("not an archive")
    assert "not a whole zip archive" in refused("loveda", text)
    cut = zipped(tmp_path / "cut.zip", right_files("loveda"))
    cut.write_bytes(cut.read_bytes()[:-40])
    assert "not a whole zip archive" in refused("loveda", cut)


@pytest.mark.parametrize("part", ["archive", "picture"])
def test_a_damaged_byte_is_refused_or_harmless(
    part: str, published: Callable[[str], Published], tmp_path: Path
) -> None:
    files, archive = right_files("loveda"), tmp_path / "archive.zip"
    right = check_archive(zipped(archive, files), "loveda", published("loveda").images)
    whole = archive.read_bytes() if part == "archive" else files["6.png"]
    positions, refusals = range(0, len(whole), 11), 0
    for position in positions:
        damaged = whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]
        if part == "archive":
            archive.write_bytes(damaged)
        else:
            zipped(archive, {**files, "6.png": damaged})
        try:
            assert check_archive(archive, "loveda", published("loveda").images).shares == right.shares
        except UserError as error:
            assert str(error).startswith(f"{archive}: ")
            refusals += 1
    assert refusals > 0.9 * len(positions)


@BOTH
def test_a_map_of_another_size(name: str, refused: Callable[..., str]) -> None:
    labels = every_class(name).T.copy()
    content = png(labels if name == "loveda" else COLOURS[labels])
    line = refused(name, {**right_files(name), FIRST[name]: content})
    assert line.startswith(f"{FIRST[name]!r} is 64 x 40, its test image 40 x 64 pixels")


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=form, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("loveda", "RGB", "is a 8-bit RGB PNG; write it as 8-bit grey"),
        ("loveda", "P", "is a 8-bit palette PNG"),
        ("loveda", "LA", "is a 8-bit grey with alpha PNG"),
        ("loveda", "1", "is a 1-bit grey PNG"),
        ("loveda", "I;16", "is a 16-bit grey PNG"),
        ("uavid", "L", "is a 8-bit grey PNG; write it as 8-bit RGB"),
        ("uavid", "P", "is a 8-bit palette PNG"),
        ("uavid", "RGBA", "is a 8-bit RGB with alpha PNG"),
    ],
)
def test_a_png_of_another_kind(name: str, mode: str, message: str, refused: Callable[..., str]) -> None:
    image = Image.fromarray(np.zeros(SIZE, np.uint8)).convert(mode)
    line = refused(name, {**right_files(name), FIRST[name]: encoded(image)})
    assert line.startswith(f"{FIRST[name]!r} {message}")


def test_a_file_of_another_kind(refused: Callable[..., str]) -> None:
    for content in (encoded(Image.fromarray(every_class("loveda")), "JPEG"), b"text", b""):
        assert "'6.png' is not a PNG file" in refused("loveda", {**right_files("loveda"), "6.png": content})


def raw_png(height: int, width: int, interlaced: int, rows: bytes) -> bytes:
    """An 8-bit grey PNG around any stream of rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_png_without_all_of_its_rows(refused: Callable[..., str]) -> None:
    row, whole = bytes(1 + SIZE[1]), SIZE[0]
    right = right_files("loveda")
    for count in (0, 1, whole - 1, whole + 1):
        line = refused("loveda", {**right, "6.png": raw_png(*SIZE, 0, row * count)})
        assert line.startswith("'6.png' is a damaged PNG")
    cut = png(every_class("loveda"))[:-300]
    assert "'6.png' is a damaged PNG" in refused("loveda", {**right, "6.png": cut})
    assert "'6.png' is an interlaced PNG" in refused("loveda", {**right, "6.png": raw_png(*SIZE, 1, row * whole)})


def test_values_and_colours_that_are_no_class(refused: Callable[..., str]) -> None:
    for value in (7, 255):
        labels = every_class("loveda")
        labels[3, 4:6] = value
        line = refused("loveda", {**right_files("loveda"), "6.png": png(labels)})
        assert line.startswith(f"'6.png' has 2 pixels that are no class, one of value {value}; LoveDA knows 0, 1, 2, 3")
    coloured = COLOURS[every_class("uavid")]
    coloured[5, 6] = (128, 0, 1)
    line = refused("uavid", {**right_files("uavid"), FIRST["uavid"]: png(coloured)})
    assert line.startswith(f"{FIRST['uavid']!r} has 1 pixels that are no class, one of colour #800001; UAVid knows")
    assert "#800000, #804080, #008000, #808000, #400080, #C000C0, #404000, #000000" in line


def test_the_published_masks_are_no_submission(
    published: Callable[[str], Published], refused: Callable[..., str]
) -> None:
    mask = (published("loveda").root / "Val/Urban/masks_png/4.png").read_bytes()
    assert "one of value 7" in refused("loveda", {**right_files("loveda"), "6.png": mask})


def test_an_unreadable_test_image(tmp_path: Path) -> None:
    (tmp_path / "6.png").write_text("no picture")
    archive = zipped(tmp_path / "archive.zip", {"6.png": b""})
    with pytest.raises(UserError, match=r"6\.png: not a readable"):
        check_archive(archive, "loveda", {"6": tmp_path / "6.png"})
