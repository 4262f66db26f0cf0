"""What is in the spool under its name is whole; what belongs to another run is not taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from d2ls_fast.inference.products.rows import MapRows
from d2ls_fast.inference.spool import Spool, runs


def make_rows(start: int) -> MapRows:
    generator = np.random.default_rng(start)
    labels = generator.integers(0, 4, (5, 7), dtype=np.uint8)
    return MapRows(start, labels, generator.random((5, 7), np.float32), None)


def test_rows_come_back_in_order_whatever_the_order_they_came_in(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", {})
    for number in (2, 0, 1):
        spool.put(number, make_rows(5 * number))
    assert spool.finished(4) == [0, 1, 2]
    for number, rows in enumerate(spool.rows(3)):
        expected = make_rows(5 * number)
        assert rows.start == expected.start
        assert np.array_equal(rows.labels, expected.labels)
        assert np.array_equal(rows.confidence, expected.confidence)
        assert rows.probabilities is None


def test_rows_of_the_same_settings_are_kept_and_those_of_others_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    Spool(folder, {"window": 512}).put(0, make_rows(0))
    assert Spool(folder, {"window": 512}).finished(1) == [0]
    assert Spool(folder, {"window": 512}, resume=False).finished(1) == []
    Spool(folder, {"window": 512}).put(0, make_rows(0))
    assert Spool(folder, {"window": 256}).finished(1) == []


def test_a_file_cut_short_counts_as_missing(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", {})
    spool.put(0, make_rows(0))
    (file,) = spool.folder.glob("*.rows")
    file.write_bytes(file.read_bytes()[:-30])
    assert spool.finished(1) == []


def test_runs_of_numbers() -> None:
    assert runs([]) == []
    assert runs([0, 1, 2, 5, 7, 8]) == [range(3), range(5, 6), range(7, 9)]
