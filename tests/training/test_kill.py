"""Runs killed with SIGKILL at the worst moments, and their continuation."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from forked_runs import run_forked, train_and_die, train_with_noise
from rich.console import Console
from safetensors.torch import load_file
from tiny_recipe import write_recipe

from d2ls_fast.config import load_settings
from d2ls_fast.errors import UserError
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.fit import fit
from d2ls_fast.training.log import CsvLog

OVERRIDES = (
    "steps=8",
    "evaluate_every=4",
    "checkpoint_every=2",
    "ema=0.9",
    "optimizer.lookahead={steps: 3, alpha: 0.5}",
    "schedule.warmup=2",
)
LOSS = ("d2ls_fast.nn.losses:D2LSLoss", "forward")
SAVE = ("lightning.pytorch:Trainer", "save_checkpoint")
PREDICT = ("d2ls_fast.models.model:D2LS", "predict")
REPORT = ("d2ls_fast.training.fit", "write_json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    write_recipe(folder)
    assert run_forked(train_with_noise, folder, OVERRIDES) == [0]
    return folder / "run"


def assert_same(run: Path, whole: Path) -> None:
    """Weights, averaged weights, optimizer, scores: bit for bit."""
    for name in ("last.safetensors", "best.safetensors"):
        expected, found = load_file(whole / name), load_file(run / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(value, found[key]) for key, value in expected.items()), name
    expected, found = (torch.load(path / "last.ckpt", weights_only=True) for path in (whole, run))
    for state in (expected, found):
        state["moments"] = state["optimizer_states"][0]["state"]
    for key in ("state_dict", "moments", "global_step"):
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0)
    assert found["lr_schedulers"] == expected["lr_schedulers"]
    expected, found = (json.loads((path / "report.json").read_text()) for path in (whole, run))
    assert all(found[key] == expected[key] for key in ("best", "best_step", "last", "steps"))


@pytest.mark.parametrize(
    ("death", "resumed_at"),
    [
        pytest.param((*LOSS, 6), 4, id="mid-epoch"),
        pytest.param((*SAVE, 3, "", True), 4, id="mid-checkpoint"),
        pytest.param(("os", "replace", 5, "last.ckpt"), 4, id="between the two renames"),
        pytest.param((*PREDICT, 5), 6, id="mid-validation"),
        pytest.param((*REPORT, 1), 8, id="before the report"),
    ],
)
def test_a_killed_run_continues_to_the_same_weights(
    tmp_path: Path, whole: Path, death: tuple[str | int, ...], resumed_at: int
) -> None:
    write_recipe(tmp_path)
    assert run_forked(train_and_die, tmp_path, OVERRIDES, *death) == [-9]
    run = tmp_path / "run"
    for path in run.glob("[!.]*.ckpt"):  # every state that has a name is whole
        assert torch.load(path, weights_only=True)["global_step"] in (2, 4, 6, 8)
    assert not (run / "report.json").exists()
    assert run_forked(train_with_noise, tmp_path, OVERRIDES, True) == [0]
    assert json.loads((run / "report.json").read_text())["steps_in_this_session"] == 8 - resumed_at
    assert not list(run.glob(".*"))  # nothing half-written stays behind
    assert_same(run, whole)


def test_a_damaged_state_is_refused_by_name_and_the_one_before_it_continues(tmp_path: Path, whole: Path) -> None:
    settings = load_settings(TrainSettings, write_recipe(tmp_path), OVERRIDES)
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "report.json").unlink()
    last, earlier = run / "last.ckpt", run / "previous.ckpt"
    good = last.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for damaged in (good[: len(good) // 2], bytes(flipped), b""):
        last.write_bytes(damaged)
        with pytest.raises(UserError, match=r"run/last\.ckpt: .*damaged.*previous\.ckpt.*--resume-previous"):
            fit(settings, resume=True, console=Console(quiet=True))
        assert last.read_bytes() == damaged
    before = earlier.read_bytes()
    assert run_forked(train_with_noise, tmp_path, OVERRIDES, True, True) == [0]
    assert json.loads((run / "report.json").read_text())["steps_in_this_session"] == 2
    assert earlier.read_bytes() == before  # the damaged state did not take its place
    assert_same(run, whole)
    earlier.write_bytes(before[:100])
    with pytest.raises(UserError, match=r"previous\.ckpt: .*damaged.*start anew"):
        fit(settings, previous=True, console=Console(quiet=True))
    earlier.unlink()
    with pytest.raises(UserError, match=r"previous\.ckpt: there is no earlier state"):
        fit(settings, previous=True, console=Console(quiet=True))


def test_half_a_line_in_the_metrics_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,0.5\n2,0.4\n1")  # killed while writing step 10
    log = CsvLog(path, ["loss"], resume_step=5)
    log.log_metrics({"loss": 0.25}, 3)
    assert [row["step"] for row in csv.DictReader(path.open())] == ["1", "2", "3"]
