"""Files, folders and globs on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2ls_fast.errors import UserError
from d2ls_fast.inference.inputs import find_scenes


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def test_a_folder_means_its_images_in_natural_order(tmp_path: Path) -> None:
    touch(tmp_path, "tile10.TIF", "tile2.png", "notes.txt", ".hidden.png")
    touch(tmp_path / "deeper", "other.png")
    assert [path.name for path in find_scenes([str(tmp_path)])] == ["tile2.png", "tile10.TIF"]


def test_maps_beside_their_scenes_are_not_scenes(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif", "a_labels.tif", "a_overlay.png", "a_confidence.tif", "road_labels.png")
    assert [path.name for path in find_scenes([str(tmp_path)])] == ["a.tif", "road_labels.png"]


def test_globs_files_and_repeats(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "y", "1.jp2", "2.jpg")
    touch(tmp_path, "3.png")
    found = find_scenes([str(tmp_path / "**" / "*.jp*"), str(tmp_path / "3.png"), str(tmp_path / "x" / "y" / "1.jp2")])
    assert [path.name for path in found] == ["1.jp2", "2.jpg", "3.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("missing.tif", "no such file or folder"), ("*.tif", "matches no image"), ("", "no images in this folder")],
)
def test_inputs_without_images_are_refused(text: str, message: str, tmp_path: Path) -> None:
    touch(tmp_path, "readme.txt")
    with pytest.raises(UserError, match=message):
        find_scenes([str(tmp_path / text)])


def test_two_scenes_of_one_name_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "a", "1.tif")
    touch(tmp_path / "b", "1.png")
    with pytest.raises(UserError, match=r"b/1\.png: its map would be named 1_labels like that of .*a/1\.tif"):
        find_scenes([str(tmp_path / "a"), str(tmp_path / "b")])
