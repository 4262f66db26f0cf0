"""What is written is what the contests ask for, byte for byte the same each time, or nothing."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image
from published_trees import save
from submission_files import CLASSES, COLOURS, MEMBERS, Published, every_class

from d2ls_fast.data.raster import write_label_raster
from d2ls_fast.errors import UserError
from d2ls_fast.inference.predictor import Predictor
from d2ls_fast.inference.submissions import CONTESTS
from d2ls_fast.inference.submissions.archive import predicted_maps, stored_maps, write_submission
from d2ls_fast.models.checkpoint import ModelCard

BOTH = pytest.mark.parametrize("name", ["loveda", "uavid"])


def maps_of(data: Published) -> dict[str, NDArray[np.uint8]]:
    return {identifier: every_class(data.contest, seed) for seed, identifier in enumerate(data.images)}


@BOTH
def test_an_archive_holds_the_maps_as_the_contest_stores_them(
    name: str, published: Callable[[str], Published], tmp_path: Path
) -> None:
    data, steps = published(name), []
    maps, output = maps_of(data), tmp_path / "new" / "submission.zip"
    checked = write_submission(CONTESTS[name], data.images, iter(maps.items()), output, lambda: steps.append(1))
    assert [path.name for path in output.parent.iterdir()] == ["submission.zip"]
    with ZipFile(output) as archive:
        assert archive.namelist() == list(MEMBERS[name].values())
        for identifier, member in MEMBERS[name].items():
            picture = Image.open(io.BytesIO(archive.read(member)))
            assert picture.mode == ("L" if name == "loveda" else "RGB")
            wanted = maps[identifier] if name == "loveda" else COLOURS[maps[identifier]]
            np.testing.assert_array_equal(np.asarray(picture), wanted)
    pixels = np.concatenate([labels.reshape(-1) for labels in maps.values()])
    np.testing.assert_allclose(checked.shares, np.bincount(pixels, minlength=CLASSES[name]) / pixels.size)
    assert (checked.pictures, checked.size, len(steps)) == (2, output.stat().st_size, 4)


def test_the_same_maps_give_the_same_bytes(published: Callable[[str], Published], tmp_path: Path) -> None:
    data = published("uavid")
    archives = [tmp_path / "one.zip", tmp_path / "two.zip"]
    for output in archives:
        write_submission(CONTESTS["uavid"], data.images, maps_of(data).items(), output)
    assert archives[0].read_bytes() == archives[1].read_bytes()


def test_an_archive_that_is_found_wrong_never_gets_its_name(
    published: Callable[[str], Published], tmp_path: Path
) -> None:
    data, output = published("loveda"), tmp_path / "submission.zip"
    output.write_bytes(b"an earlier one")
    maps = maps_of(data)
    for wrong, message in (({**maps, "7": maps["7"][:-1]}, "is 39 x 64"), ({"6": maps["6"]}, "no map of test image 7")):
        with pytest.raises(UserError, match=rf"/submission\.zip: .*{message}"):
            write_submission(CONTESTS["loveda"], data.images, wrong.items(), output)
        assert [path.name for path in tmp_path.iterdir()] == ["submission.zip"]
        assert output.read_bytes() == b"an earlier one"


def test_an_interruption_leaves_nothing(published: Callable[[str], Published], tmp_path: Path) -> None:
    data = published("loveda")

    def interrupted() -> Iterator[tuple[str, NDArray[np.uint8]]]:
        yield "6", maps_of(data)["6"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_submission(CONTESTS["loveda"], data.images, interrupted(), tmp_path / "submission.zip")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(
    published: Callable[[str], Published], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ZipFile, "writestr", full)
    data = published("loveda")
    with pytest.raises(UserError, match=r"submission\.zip: cannot be written .*No space left"):
        write_submission(CONTESTS["loveda"], data.images, maps_of(data).items(), tmp_path / "submission.zip")
    assert list(tmp_path.iterdir()) == []


def test_predicted_maps_are_the_predictors_with_the_cards_bands(
    published: Callable[[str], Published], pixel_model: object, card: ModelCard, tmp_path: Path
) -> None:
    image = np.random.default_rng(3).integers(0, 255, (40, 64, 3), np.uint8)
    save(tmp_path / "5.png", image)
    turned = ModelCard(**{**vars(card), "bands": [3, 2, 1], "mean": [120.0] * 3, "std": [60.0] * 3})
    predictor = Predictor((pixel_model, turned))
    ((identifier, labels),) = predicted_maps(predictor, {"5": tmp_path / "5.png"})
    assert identifier == "5" and len(np.unique(labels)) > 1
    np.testing.assert_array_equal(labels, predictor.predict(np.moveaxis(image[..., ::-1], -1, 0)))


@BOTH
def test_stored_maps_are_read_as_indices(name: str, tmp_path: Path) -> None:
    contest, labels = CONTESTS[name], every_class(name)
    files = {"1": tmp_path / "palette.png", "2": tmp_path / "map.tif", "3": tmp_path / "grey.png"}
    write_label_raster(files["1"], labels, contest.colours)
    write_label_raster(files["2"], labels.astype(np.int16), contest.colours, nodata=255)
    save(files["3"], labels)
    for (identifier, found), wanted in zip(stored_maps(contest, files), files, strict=True):
        assert identifier == wanted and found.dtype == np.uint8
        np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize(
    ("value", "message"),
    [(7, "holds the value 7 in 1 pixels; LoveDA has the classes 0 to 6"), (255, "marks pixels without data")],
)
def test_a_stored_map_with_a_value_that_is_no_class_is_refused(value: int, message: str, tmp_path: Path) -> None:
    labels = every_class("loveda")
    labels[3, 4] = value
    save(tmp_path / "4191.png", labels)
    with pytest.raises(UserError, match=rf"4191\.png: .*{message}"):
        list(stored_maps(CONTESTS["loveda"], {"4191": tmp_path / "4191.png"}))


def test_stored_maps_of_colours_or_fractions_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "1.png", COLOURS[every_class("uavid")])
    with rasterio.open(tmp_path / "2.tif", "w", "GTiff", 4, 4, 1, dtype="float32") as target:
        target.write(np.full((4, 4), 0.5, np.float32), 1)
    for file, what in (("1.png", "colours"), ("2.tif", "float32")):
        with pytest.raises(UserError, match=f"{file}: not a raster of class indices but of {what}"):
            list(stored_maps(CONTESTS["uavid"], {"1": tmp_path / file}))
