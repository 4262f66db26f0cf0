"""The data-loading benchmark: pixels per second of one worker, and waiting in training steps."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress
from tiny_recipe import write_recipe
from typer.testing import CliRunner

from d2ls_fast.benchmarks import data_loading
from d2ls_fast.benchmarks.data_loading import TimedLoader
from d2ls_fast.cli.main import app
from d2ls_fast.config import load_settings
from d2ls_fast.data import TrainCrops, build_datasets
from d2ls_fast.training.config import TrainSettings


@pytest.fixture
def settings(tmp_path: Path) -> TrainSettings:
    return load_settings(TrainSettings, write_recipe(tmp_path))


def slowed(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Make every crop take at least that long."""
    original = TrainCrops.item

    def item(self: TrainCrops, index: int, crop: int):  # type: ignore[no-untyped-def]
        time.sleep(seconds)
        return original(self, index, crop)

    monkeypatch.setattr(TrainCrops, "item", item)


def test_a_loader_is_timed_where_it_is_asked() -> None:
    loader = TimedLoader([1, 2, 3])  # type: ignore[arg-type]
    for _ in loader:
        time.sleep(0.02)
    assert len(loader) == 3 and len(loader.given) == 3 and len(loader.asked) == 4
    assert all(given - asked < 0.01 for asked, given in zip(loader.asked, loader.given, strict=False))
    assert loader.asked[3] - loader.asked[0] > 0.06


def test_rates_count_crop_pixels(settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch, 0.01)
    rates = data_loading.measure_rates(settings, crops=6)
    assert [(rate.source, rate.crops) for rate in rates] == [("files", 6), ("memory", 6)]
    for rate in rates:
        assert 10 <= rate.p20_ms <= rate.median_ms <= rate.p80_ms
        assert rate.megapixels_per_second < 32 * 32 / 0.01 / 1e6


def test_a_slow_reader_is_seen_as_waiting(settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    data = build_datasets(settings.data, settings.augment)
    chosen = settings.model_copy(update={"accumulate": 2, "batch_size": 2})
    slowed(monkeypatch, 0.05)
    row = data_loading.measure_waiting(chosen, data, steps=2, workers=0)
    assert row.steps == 2 and row.step_ms > row.waiting_ms >= 4 * 50
    assert 0 < row.waiting_percent < 100


def test_the_command_writes_its_results(settings: TrainSettings, tmp_path: Path) -> None:
    stem = tmp_path / "out" / "cpu-data"
    arguments = [
        "bench",
        "data",
        str(tmp_path / "recipe.yaml"),
        "batch_size=2",
        "--repeats",
        "3",
        "--output",
        str(stem),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    content = json.loads(stem.with_suffix(".json").read_text())
    assert [rate["crops"] for rate in content["rates"]] == [6, 6] and content["waiting"][0]["steps"] == 3
    assert "torch" in content["machine"] and "waiting percent" in stem.with_suffix(".md").read_text()
    assert "megapixels" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["data"], "no recipe is named"),
        (["data", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["head", "configs/demo.yaml"], "only the levels data and map take a file"),
    ],
)
def test_wrong_calls_end_in_one_line(arguments: list[str], named: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 2 and named in result.stderr and result.stderr.count("\n") == 1


def test_workers_of_the_recipe_are_a_row_of_their_own(settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_loading, "measure_waiting", lambda settings, data, steps, workers: workers)
    monkeypatch.setattr(data_loading, "measure_rates", lambda *arguments: [])
    chosen = settings.model_copy(update={"workers": 3})
    with Progress(console=Console(quiet=True)) as progress:
        assert data_loading.measure(chosen, 3, progress) == ([], [0, 3])
