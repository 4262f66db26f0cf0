"""Whole training runs on tiny images."""

from __future__ import annotations

import csv
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from tiny_recipe import CLASSES, write_recipe

from d2ls_fast.config import load_settings
from d2ls_fast.errors import UserError
from d2ls_fast.models.checkpoint import load_checkpoint
from d2ls_fast.models.head import D2LSHead
from d2ls_fast.nn.losses import D2LSLoss
from d2ls_fast.training import outputs
from d2ls_fast.training.build import leave_out_unused
from d2ls_fast.training.config import LossSettings, TrainSettings
from d2ls_fast.training.fit import fit
from d2ls_fast.training.metrics import scores_from_matrix

OUTPUTS = {
    "best.safetensors",
    "last.ckpt",
    "last.safetensors",
    "metrics.csv",
    "previous.ckpt",
    "report.html",
    "report.json",
    "settings.yaml",
    "tensorboard",
}


def train(folder: Path, *overrides: str, resume: bool = False, overwrite: bool = False, **changes: Any) -> Any:
    settings = load_settings(TrainSettings, write_recipe(folder, **changes), overrides)
    return fit(settings, resume, overwrite, Console(quiet=True))


def fail_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException | None = None) -> None:
    """Make the loss of ``step`` infinite, or raise ``error`` there."""
    original = D2LSLoss.forward
    calls = iter(range(1, 10_000))

    def forward(self: D2LSLoss, output: Any, target: torch.Tensor) -> Any:
        total, terms = original(self, output, target)
        if next(calls) == step:
            if error is not None:
                raise error
            total = total * float("inf")
        return total, terms

    monkeypatch.setattr(D2LSLoss, "forward", forward)


def test_a_run_learns_and_leaves_everything_it_promises(tmp_path: Path) -> None:
    report = train(tmp_path, steps=40, evaluate_every=20, ema=0.9)
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == OUTPUTS
    assert json.loads((run / "report.json").read_text()) == report
    assert report["best"]["mean_iou"] > 0.7
    assert report["items"]["val"] == 3 and report["steps"] == 40 and report["images_per_second"] > 0

    model, card = load_checkpoint(run / "best.safetensors")
    assert card.classes == CLASSES and card.bands == [1, 2, 3]
    assert card.mean == [127.0] * 3 and card.std == [128.0] * 3
    assert card.scores["mean_iou"] == pytest.approx(report["best"]["mean_iou"])
    assert model.config["embed_dim"] == 32

    rows = list(csv.DictReader((run / "metrics.csv").open()))
    losses = [float(row["loss"]) for row in rows if row["loss"]]
    assert len(losses) == 40 and losses[-1] < losses[0]
    assert [row["mean_iou"] != "" for row in rows].count(True) == 2
    assert load_settings(TrainSettings, run / "settings.yaml").steps == 40


def test_a_diverged_run_names_the_step_and_its_continuation_equals_the_uninterrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"ema": 0.9, "accumulate": 2, "batch_size": 2}
    (tmp_path / "whole").mkdir()
    whole = train(tmp_path / "whole", **options)
    (tmp_path / "parts").mkdir()
    with monkeypatch.context() as broken:
        fail_at(broken, step=9)  # two batches a step: the first batch of step 5
        with pytest.raises(UserError, match="step 5: the loss is inf"):
            train(tmp_path / "parts", **options)
    assert not (tmp_path / "parts/run/report.json").exists()
    continued = train(tmp_path / "parts", resume=True, **options)

    assert continued["best"] == whole["best"] and continued["last"] == whole["last"]
    assert continued["steps_in_this_session"] == 3
    expected, found = (load_file(tmp_path / name / "run/last.safetensors") for name in ("whole", "parts"))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    steps = [
        [row["step"] for row in csv.DictReader((tmp_path / name / "run/metrics.csv").open())]
        for name in ("whole", "parts")
    ]
    assert steps[0] == steps[1]


def test_interrupting_raises_and_keeps_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, step=5, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    assert torch.load(tmp_path / "run/last.ckpt", weights_only=True)["global_step"] == 3


def test_a_disk_that_fills_up_leaves_the_earlier_files_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch import Trainer

    original, calls = Trainer.save_checkpoint, iter(range(1, 100))

    def save(self: Trainer, path: Path, *arguments: Any) -> None:
        if next(calls) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        original(self, path, *arguments)

    monkeypatch.setattr(Trainer, "save_checkpoint", save)
    with pytest.raises(UserError, match=r"last\.ckpt: cannot be written .*No space left"):
        train(tmp_path)
    assert torch.load(tmp_path / "run/last.ckpt", weights_only=True)["global_step"] == 3
    assert {path.name for path in (tmp_path / "run").iterdir()} <= OUTPUTS


def test_the_best_model_is_the_one_with_the_highest_mean_iou(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = iter([[[5, 5], [5, 5]], [[9, 1], [1, 9]], [[8, 2], [2, 8]]])
    monkeypatch.setattr(outputs, "evaluate_model", lambda *_: scores_from_matrix(next(matrices)))
    report = train(tmp_path, evaluate_every=2)
    assert report["best_step"] == 4 and report["best"]["matrix"] == [[9, 1], [1, 9]]
    assert report["last"]["matrix"] == [[8, 2], [2, 8]]
    best, last = (load_checkpoint(tmp_path / "run" / name) for name in ("best.safetensors", "last.safetensors"))
    assert best[1].scores["mean_iou"] > last[1].scores["mean_iou"]
    assert any(not torch.equal(value, last[0].state_dict()[name]) for name, value in best[0].state_dict().items())


def test_mixed_precision_and_the_polynomial_schedule_train(tmp_path: Path) -> None:
    report = train(tmp_path, "precision=bf16", "schedule.kind=poly", "schedule.warmup=2", "channels_last=false")
    assert report["settings"]["precision"] == "bf16"
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").open()))
    rates = [float(row["lr"]) for row in rows if row["lr"]]
    assert rates[0] == pytest.approx(1e-3) and rates[2] == pytest.approx(3e-3) and rates[-1] < 1.5e-3


def test_without_validation_images_the_best_is_the_last(tmp_path: Path) -> None:
    data = {"root": str(tmp_path / "data"), "train": ["images/*.png"], "classes": [{"name": name} for name in CLASSES]}
    report = train(tmp_path, data=data, epochs=2, steps=None, evaluate_every=None)
    assert report["best"] is None and report["best_step"] == report["steps"] > 0
    best, last = (load_file(tmp_path / "run" / name) for name in ("best.safetensors", "last.safetensors"))
    assert all(torch.equal(best[name], last[name]) for name in last)


def test_an_earlier_run_is_kept_unless_overwriting_is_asked_for(tmp_path: Path) -> None:
    train(tmp_path, steps=1)
    with pytest.raises(UserError, match=r"--resume.*--overwrite"):
        train(tmp_path, steps=2)
    assert train(tmp_path, steps=2, overwrite=True)["steps"] == 2


def test_a_complete_run_can_be_lengthened_but_not_resumed_as_it_is(tmp_path: Path) -> None:
    train(tmp_path, steps=2)
    with pytest.raises(UserError, match="complete at step 2"):
        train(tmp_path, steps=2, resume=True)
    assert train(tmp_path, steps=3, resume=True)["steps_in_this_session"] == 1


def test_resuming_what_is_not_there_or_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run to resume"):
        train(tmp_path, resume=True)
    train(tmp_path, steps=1)
    with pytest.raises(UserError, match=r"another model.*model\.stages=1"):
        train(tmp_path, "model.stages=2", resume=True)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_damaged_or_malicious_state_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    state = tmp_path / "run/last.ckpt"
    state.parent.mkdir()
    state.write_bytes(b"PK damaged")
    with pytest.raises(UserError, match=r"last\.ckpt: not a training state"):
        train(tmp_path, resume=True)
    trap = tmp_path / "sprung"
    for write in (pickle.dump, torch.save):
        with state.open("wb") as file:
            write(Malicious(trap), file)
        with pytest.raises(UserError, match=r"last\.ckpt: not a training state"):
            train(tmp_path, resume=True)
    assert not trap.exists()


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write into this folder"):
        train(tmp_path, output=str(tmp_path / "file" / "run"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.class_weights=[1,2,3]", "3 values for 2 classes"),
        ("exclude_from_means=[middle]", "no class 'middle'"),
        ("model.backbone=resnet19", "resnet18"),
        ("model.pretrained=nowhere.pth", "nowhere.pth"),
        ("data.root=nowhere", "nowhere"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(tmp_path, override)


def test_excluded_classes_and_class_weights_reach_the_run(tmp_path: Path) -> None:
    report = train(tmp_path, "loss.class_weights=[1,2]", "exclude_from_means=[dark]", steps=1)
    assert report["best"]["excluded_from_means"] == ["dark"]
    assert report["best"]["mean_iou"] == report["best"]["classes"]["bright"]["iou"]
    assert yaml.safe_load((tmp_path / "run/settings.yaml").read_text())["loss"]["class_weights"] == [1.0, 2.0]


def test_every_loss_setting_reaches_the_run(tmp_path: Path) -> None:
    nce = {"temperature": 0.2, "direction": "both", "balanced": True}
    loss = {"intermediate_weight": 0.3, "auxiliary_weight": 0.0, "contrastive": "pixels", "nce": nce}
    train(tmp_path, loss=loss, steps=2, evaluate_every=2)
    rows = [row for row in csv.DictReader((tmp_path / "run" / "metrics.csv").open(newline="")) if row["loss"]]
    terms = {name.removeprefix("loss_"): value for name, value in rows[0].items() if name.startswith("loss_")}
    assert [name for name, value in terms.items() if value] == ["cross_entropy", "dice", "intermediate", "contrastive"]
    total = sum(float(value) for value in terms.values() if value)
    assert total == pytest.approx(float(rows[0]["loss"]), rel=1e-4)


def test_what_the_loss_does_not_use_is_not_computed() -> None:
    head = D2LSHead([8, 8, 8, 8], 2, embed_dim=16, num_heads=2, stages=1)
    leave_out_unused(head, LossSettings())
    assert head.auxiliary and head.contrast is not None and not head.intermediate
    leave_out_unused(head, LossSettings(auxiliary_weight=0.0, contrastive="none", intermediate_weight=0.1))
    assert not head.auxiliary and head.contrast is None and head.intermediate
