"""Ablations: which runs there are, what is done again, what the tables say."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_recipe import write_recipe

from d2ls_fast.config import load_settings
from d2ls_fast.errors import UserError
from d2ls_fast.training import ablate as ablate_module
from d2ls_fast.training import ablation_report
from d2ls_fast.training.ablate import ROWS, Row, ablate, plan
from d2ls_fast.training.config import TrainSettings


def recipe(folder: Path, *overrides: str) -> TrainSettings:
    return load_settings(TrainSettings, write_recipe(folder, steps=1, evaluate_every=1), overrides)


def test_every_row_changes_what_it_says_and_equal_rows_are_one(tmp_path: Path) -> None:
    settings = recipe(tmp_path, "model.stages=3", "seed=7")
    rows, runs = plan(settings, (), seeds=2)
    assert [row.key for row in rows] == [key for key in ROWS if key != "stages-3"]
    assert rows[0].label == "full model = 3 stages"
    assert [(run.row, run.seed) for run in runs[:2]] == [("full", 7), ("stages-1", 7)] and runs[7].seed == 8
    by_row = {run.row: run.settings for run in runs[:7]}
    assert by_row["full"].model == settings.model
    assert (by_row["stages-1"].model.stages, by_row["stages-5"].model.stages) == (1, 5)
    assert not by_row["one-way"].model.alternating and not by_row["static"].model.dynamic
    assert not by_row["no-contrast"].model.contrastive and by_row["no-contrast"].loss.contrastive_weight == 0
    assert by_row["prototype"].model.name == "prototype"
    assert len({run.settings.output for run in runs}) == 14
    assert by_row["static"].data == settings.data and by_row["static"].optimizer == settings.optimizer


def test_finished_runs_are_read_and_interrupted_ones_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = recipe(tmp_path, "steps=2")
    calls: list[tuple[str, bool]] = []
    original = ablate_module.fit

    def counted(run: TrainSettings, resume: bool, overwrite: bool, console: Console) -> Any:
        calls.append((run.output.parent.name, resume))
        if len(calls) == 2:  # a kill in the middle of the second run: its state is there, its report is not
            original(run.model_copy(update={"steps": 1}), console=console)
            (run.output / "report.json").unlink()
            (run.output / "settings.yaml").unlink()
            raise KeyboardInterrupt
        return original(run, resume=resume, overwrite=overwrite, console=console)

    monkeypatch.setattr(ablate_module, "fit", counted)
    with pytest.raises(KeyboardInterrupt):
        ablate(settings, 1, ["full", "prototype"], Console(quiet=True))
    shown = io.StringIO()
    rows = ablate(settings, 1, ["full", "prototype"], Console(file=shown, width=200))
    assert calls == [("full", False), ("prototype", False), ("prototype", True)]
    lines = shown.getvalue().splitlines()
    assert len(lines) == 2 and "done before" in lines[0] and "[2/2] static prototypes" in lines[1]
    report = json.loads((tmp_path / "run/ablation/prototype/seed-42/report.json").read_text())
    assert rows[1].last == [report["last"]["mean_iou"]] and rows[1].parameters == report["parameters"]

    with pytest.raises(UserError, match=r"full/seed-42/settings\.yaml: holds a run with optimizer\.lr=0\.003"):
        ablate(recipe(tmp_path, "steps=2", "optimizer.lr=1e-4"), 1, ["full"], Console(quiet=True))
    assert len(calls) == 3


def test_wrong_requests_are_named_before_any_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--only ful: there is no such row; did you mean full"):
        plan(recipe(tmp_path), ["ful"], 1)
    with pytest.raises(UserError, match=r"model\.name=prototype"):
        plan(recipe(tmp_path, "model.name=prototype"), (), 1)


ROWS_OF_TWO = [
    Row("full", "full model", [1, 2, 3], [0.70, 0.72, 0.74], [0.71, 0.73, 0.75], [10.0] * 3, 2_500_000),
    Row("static", "static dictionary", [1, 2, 3], [0.69, 0.69, 0.69], [0.70, 0.70, 0.70], [9.0] * 3, 2_400_000),
]


def test_the_tables_give_mean_and_spread(tmp_path: Path) -> None:
    assert ROWS_OF_TWO[0].mean == pytest.approx(0.72) and ROWS_OF_TWO[0].spread == pytest.approx(0.02)
    assert Row("full", "full", [1], [0.5]).spread is None
    settings = recipe(tmp_path)
    paths = ablation_report.write(tmp_path / "out", ROWS_OF_TWO, settings, "d2ls-fast ablate recipe.yaml")
    assert [path.name for path in paths] == ["ablation.json", "ablation.md", "ablation.png"]
    page = paths[1].read_text()
    assert "| full model | 72.0 ± 2.0 |  | 73.0 | 2.50 M | 10 | 70.0, 72.0, 74.0 |" in page
    assert "| static dictionary | 69.0 ± 0.0 | -3.0 | 70.0 | 2.40 M | 9 | 69.0, 69.0, 69.0 |" in page
    content = json.loads(paths[0].read_text())
    assert content["rows"][0]["standard_deviation"] == pytest.approx(0.02)
    assert str(tmp_path) not in json.dumps({key: value for key, value in content.items() if key != "settings"})
    assert paths[2].read_bytes().startswith(b"\x89PNG")
