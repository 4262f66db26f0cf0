"""Files that belong together appear together, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from d2ls_fast.errors import UserError
from d2ls_fast.files import replacing_together


def test_files_that_belong_together_replace_older_ones(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    killed = tmp_path / f".scene.{os.getpid()}.part"
    killed.mkdir()
    (killed / "stray").touch()
    with replacing_together(tmp_path, "scene") as folder:
        (folder / "a").write_text("new")
        (folder / "b").write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a": "new", "b": "new"}


def test_after_an_error_the_older_files_are_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing_together(tmp_path, "scene") as folder:
        (folder / "a").write_text("new")
        raise KeyboardInterrupt
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a": "old"}


def test_a_folder_or_file_that_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"/file: cannot be written"), replacing_together(tmp_path / "file", "scene"):
        pass
    (tmp_path / "a" / "full").mkdir(parents=True)
    with (
        pytest.raises(UserError, match=r"/a: cannot be written"),
        replacing_together(tmp_path, "scene") as folder,
    ):
        (folder / "a").touch()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "file"]
