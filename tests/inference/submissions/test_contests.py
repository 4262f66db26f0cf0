"""Which images a contest asks for, which maps belong to them, and which models fit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from published_trees import save
from submission_files import MEMBERS, Published

from d2ls_fast.errors import UserError
from d2ls_fast.inference.submissions import CONTESTS
from d2ls_fast.models.checkpoint import ModelCard

BOTH = pytest.mark.parametrize("name", ["loveda", "uavid"])
TEST_FOLDER = {"loveda": "Test", "uavid": "uavid_test"}


@BOTH
def test_the_test_images_are_found_from_the_root_or_their_own_folder(
    name: str, published: Callable[[str], Published]
) -> None:
    root = published(name).root
    found = CONTESTS[name].find_images(root)
    assert list(found) == list(MEMBERS[name])
    assert all(TEST_FOLDER[name] in path.parts and path.is_file() for path in found.values())
    assert CONTESTS[name].find_images(root / TEST_FOLDER[name]) == found


def test_loveda_images_in_one_folder_are_in_natural_order_without_what_is_beside_them(tmp_path: Path) -> None:
    for file in ("10.png", "9.png", "9_labels.png", ".8.png", "notes.txt", "7.jpg"):
        save(tmp_path / file if file != "notes.txt" else tmp_path / "notes.png", np.zeros((4, 4), np.uint8))
    assert list(CONTESTS["loveda"].find_images(tmp_path)) == ["9", "10"]


def test_an_image_in_both_areas_is_refused(published: Callable[[str], Published], tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(published("loveda").root / "Test", root)
    shutil.copy(root / "Urban/images_png/6.png", root / "Rural/images_png/6.png")
    with pytest.raises(UserError, match=r"Rural/images_png/6\.png: 6 is .*Urban/images_png/6\.png too"):
        CONTESTS["loveda"].find_images(root)


@BOTH
def test_a_folder_without_test_images_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path.name}: no test images of {CONTESTS[name].title} here; give"):
        CONTESTS[name].find_images(tmp_path)
    with pytest.raises(UserError, match="none: no such folder"):
        CONTESTS[name].find_images(tmp_path / "none")


@BOTH
def test_maps_are_found_under_both_of_their_names(
    name: str, published: Callable[[str], Published], tmp_path: Path
) -> None:
    images = published(name).images
    first, second = images
    wanted = {first: tmp_path / f"maps/{first}_labels.tif", second: tmp_path / f"maps/{second}.png"}
    others = [tmp_path / f"maps/{first}_{kind}.png" for kind in ("overlay", "confidence")]
    for path in (*wanted.values(), *others, tmp_path / "maps/seq99/99.png"):
        save(path, np.zeros((4, 4), np.uint8))
    assert CONTESTS[name].find_maps(tmp_path / "maps", images) == wanted


def test_maps_of_a_sequence_may_lie_deeper(published: Callable[[str], Published], tmp_path: Path) -> None:
    images = published("uavid").images
    for identifier in images:
        sequence, frame = identifier.split("/")
        save(tmp_path / "out" / sequence / "Labels" / f"{frame}_labels.png", np.zeros((4, 4), np.uint8))
    assert list(CONTESTS["uavid"].find_maps(tmp_path, images)) == list(images)


@BOTH
def test_a_missing_map_and_two_of_one_image_are_refused(
    name: str, published: Callable[[str], Published], tmp_path: Path
) -> None:
    images = published(name).images
    first, second = images
    save(tmp_path / f"{first}.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(UserError, match=rf"no map of test image {second} \(1 of 2 have none\)"):
        CONTESTS[name].find_maps(tmp_path, images)
    save(tmp_path / f"{first}_labels.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(UserError, match=rf"_labels\.png: {first} is .*{first}\.png too; each must have one map"):
        CONTESTS[name].find_maps(tmp_path, images)


@BOTH
def test_only_a_model_of_its_classes_in_their_order_fits(name: str, card: ModelCard) -> None:
    contest = CONTESTS[name]
    right = replace(card, classes=list(contest.classes))
    contest.check_classes(right, Path("model.safetensors"))
    for classes in (right.classes[::-1], right.classes[:-1], [*right.classes, "other"]):
        with pytest.raises(UserError, match=rf"model\.safetensors: its classes are .*{contest.title} wants .*{name}"):
            contest.check_classes(replace(card, classes=classes), Path("model.safetensors"))


@BOTH
def test_the_archives_names_are_the_published_ones(name: str) -> None:
    assert {identifier: CONTESTS[name].member(identifier) for identifier in MEMBERS[name]} == MEMBERS[name]
