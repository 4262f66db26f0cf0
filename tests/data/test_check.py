"""Checking a data set: what it counts, and that it finds every fault instead of the first."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from d2ls_fast.data import build_datasets
from d2ls_fast.data.check import check_dataset
from d2ls_fast.data.check_report import check_tables, check_to_json, fault_lines
from d2ls_fast.data.contact_sheet import contact_sheet, write_contact_sheet
from d2ls_fast.data.scan import PICTURE_SIDE
from d2ls_fast.errors import UserError

CLASSES = [{"name": "a", "colour": "#FF0000"}, {"name": "b", "colour": "#0000FF"}]


def shown(check) -> str:
    console = Console(record=True, width=160, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(*check_tables(check))
    return console.export_text()


def test_counts_by_split(settings, tmp_path, write_png):
    random = np.random.default_rng(0)
    images, masks = {}, {}
    for name, size in (("train/x", (40, 50)), ("train/y", (30, 20)), ("val/z", (40, 50))):
        folder, _, stem = name.partition("/")
        images[name] = random.integers(0, 256, (*size, 3), np.uint8)
        masks[name] = np.zeros(size, np.uint8)
        masks[name][:3] = 255
        masks[name][3:8, :7] = name != "train/y"
        write_png(tmp_path / folder / "images" / f"{stem}.png", images[name])
        write_png(tmp_path / folder / "masks" / f"{stem}.png", masks[name])
    check = check_dataset(settings(train=["train/images/*"], val=["val/images/*"], bands=[3, 1]))
    assert check.faults == [] and check.unknown == {} and check.bands == [3, 1]
    train = check.splits["train"]
    assert (train.images, train.pixels, train.unlabelled, train.no_data) == (2, 2600, 3 * 70, 0)
    assert train.class_pixels == [2600 - 210 - 35, 35] and train.class_images == [2, 1]
    assert train.sizes == {(40, 50): 1, (30, 20): 1}
    pixels = np.concatenate([images[name].reshape(-1, 3) for name in ("train/x", "train/y")]).astype(float)
    for band, number in zip(train.bands, (3, 1), strict=True):
        values = pixels[:, number - 1]
        assert (band.minimum, band.maximum, band.count) == (values.min(), values.max(), 2600)
        assert (band.mean, band.std) == pytest.approx((values.mean(), values.std()))
    assert check.splits["val"].images == 1 and check.splits["test"].images == 0
    content = check_to_json(check)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["splits"]["train"]["classes"]["b"] == {"pixels": 35, "share": 35 / 2390, "images": 1}
    assert content["splits"]["test"]["unlabelled_share"] is None
    text = shown(check)
    assert "30x20" in text and "40x50" in text and "98.54 %" in text


def test_pixels_without_data_are_counted_apart(settings, tmp_path, write_tiff):
    image = np.full((2, 40, 40), 7.0, np.float32)
    image[:, :10] = -1.0
    image[0, 20, 20] = np.nan
    write_tiff(tmp_path / "images" / "x.tif", image, nodata=-1.0)
    write_tiff(tmp_path / "masks" / "x.tif", np.zeros((1, 40, 40), np.uint8))
    train = check_dataset(settings()).splits["train"]
    assert train.no_data == 401 and train.class_pixels == [1199, 0] and train.unlabelled == 401
    assert [(band.minimum, band.mean, band.std) for band in train.bands] == [(7.0, 7.0, 0.0)] * 2


@pytest.fixture
def faulty(tmp_path, pairs_on_disk, write_png):
    """Twelve pairs with one of every fault, of which building the data set would name the first."""
    pairs_on_disk(*(f"x{number:02}" for number in range(12)))
    images, masks = tmp_path / "images", tmp_path / "masks"
    (masks / "x00.png").unlink()
    write_png(masks / "lost.png", np.zeros((40, 48), np.uint8))
    write_png(masks / "x01.png", np.zeros((40, 40), np.uint8))
    (images / "x02.png").write_text("text")
    write_png(images / "x03.png", np.zeros((40, 48), np.uint8))  # one band
    for number, name in ((5, "x04.png"), (3, "x05.png")):
        mask = np.zeros((40, 48), np.uint8)
        mask[0, :number] = 9
        mask[1, 0] = number  # 5 and 3
        write_png(masks / name, mask)
    broken = images / "x06.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    (masks / "x07.png").write_bytes((masks / "x07.png").read_bytes()[:70])
    return tmp_path


def test_every_fault_is_found(settings, faulty):
    with pytest.raises(UserError):
        build_datasets(settings())
    check = check_dataset(settings())
    for part in (
        "x00.png: has no mask",
        "lost.png: mask without an image",
        "x01.png: mask is 40x40",
        "x02.png: not a readable",
        "x03.png: has 1 band(s)",
        "x04.png: value 9 is in 5 pixels",
        "x05.png: value 9 is in 3 pixels",
        "x06.png: not a readable",
        "x07.png: not a readable",
    ):
        assert len([fault for fault in check.faults if part in fault]) == 1, part
    assert len(check.faults) == 9
    assert check.unknown == {"9": (8, 2), "5": (1, 1), "3": (1, 1)}
    assert check.splits["train"].images == 6  # x04, x05 and the four sound ones
    assert sum(check.splits["train"].class_pixels) == 6 * 40 * 48 - 10
    text = shown(check)
    assert text.index("│ 9 ") < text.index("│ 5 ")
    assert len(fault_lines(check)) == 9 and fault_lines(check)[0].startswith("fault: ")
    check.add_faults(UserError(f"file {number}") for number in range(30))
    assert len(fault_lines(check)) == 21 and "and 19 more" in fault_lines(check)[-1]
    assert len(check_to_json(check)["faults"]) == 39
    assert check_to_json(check)["unknown_labels"]["9"] == {"pixels": 8, "files": 2}


def test_unknown_colours_are_named(settings, pairs_on_disk, tmp_path, write_png):
    pairs_on_disk("x", "y")
    mask = np.zeros((40, 48, 3), np.uint8)
    mask[..., 0] = 255
    write_png(tmp_path / "masks" / "y.png", mask)
    mask[0, :4] = (1, 2, 3)
    write_png(tmp_path / "masks" / "x.png", mask)
    check = check_dataset(settings(classes=CLASSES, masks="colour"))
    assert check.unknown == {"#010203": (4, 1)} and "x.png: colour #010203 is in 4 pixels" in check.faults[0]


def test_bands_asked_for_and_normalisation_are_checked(settings, pairs_on_disk, tmp_path, write_tiff):
    pairs_on_disk("x", "y")
    check = check_dataset(settings(bands=[4]))
    assert len(check.faults) == 2 and "y.png: has 3 band(s), data.bands asks for band 4" in check.faults[1]
    assert check.splits["train"].images == 0
    write_tiff(tmp_path / "images" / "z.tif", np.ones((3, 40, 48), np.uint16))
    write_tiff(tmp_path / "masks" / "z.tif", np.zeros((1, 40, 48), np.uint8))
    (fault,) = check_dataset(settings(normalisation="half")).faults
    assert "z.tif: pixels are uint16" in fault


def test_a_split_that_faults_leave_empty_does_not_hide_them(settings, pairs_on_disk, tmp_path):
    pairs_on_disk("x")
    (tmp_path / "masks" / "x.png").unlink()
    check = check_dataset(settings(split={"by": "spatial", "val": 0.5}))
    assert "has no mask" in check.faults[0] and "leaves none for" in check.faults[1]


def test_what_cannot_be_checked_at_all_is_an_error(settings, tmp_path):
    with pytest.raises(UserError, match="no image"):
        check_dataset(settings())
    with pytest.raises(UserError, match="no such folder"):
        check_dataset(settings(root=str(tmp_path / "nowhere")))


def test_a_pair_in_two_splits_is_read_once_and_counted_in_both(settings, pairs_on_disk):
    pairs_on_disk("x", "y")
    totals = []
    both = settings(train=["images/*"], val=["images/y.png"], allow_overlap=True)
    check = check_dataset(both, track=lambda scans, total: totals.append(total) or scans)
    assert totals == [2]
    assert [check.splits[name].images for name in ("train", "val", "test")] == [2, 1, 0]


def test_the_contact_sheet_shows_images_labels_and_faults(settings, pairs_on_disk, tmp_path, write_png):
    pairs_on_disk(*(f"x{number}" for number in range(9)), size=(360, 300))
    write_png(tmp_path / "masks" / "x8.png", np.full((360, 300), 7, np.uint8))
    check = check_dataset(settings(classes=CLASSES, masks="index"), pictures=3)
    assert [scan.pair.name for scan in check.shown["train"]] == ["images/x0.png", "images/x4.png", "images/x8.png"]
    image, labels = check.shown["train"][0].picture
    assert image.shape == labels.shape == (PICTURE_SIDE, 150, 3)
    assert labels[90, 10, 0] > image[90, 10, 0] and labels[90, 140, 2] >= labels[90, 140, 0]
    sheet = np.asarray(contact_sheet(check.shown, check.classes, check.palette))
    for colour in ((255, 0, 0), (0, 0, 255), (214, 30, 60)):  # the legend, and the frame of the faulty one
        assert (sheet == colour).all(-1).any(), colour
    write_contact_sheet(tmp_path / "sheet.png", check.shown, check.classes, check.palette)
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size == sheet.shape[1::-1]
