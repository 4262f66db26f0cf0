"""Several processes against one: the same weights, the same scores, the same files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_runs import run_forked, train
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d
from tiny_recipe import write_recipe
from torch import distributed, nn

from d2ls_fast.config import load_settings
from d2ls_fast.errors import UserError
from d2ls_fast.training.batch_norm import JoinedBatchNorm2d, join_batch_norms
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.parallel import Processes, RankShare, find_processes

# The crop leaves the batch norms of the deepest maps enough values: variances of four would blow rounding up.
COMMON = (
    "steps=10",
    "evaluate_every=5",
    "schedule.kind=constant",
    "optimizer={lr: 3.0e-5, lookahead: {steps: 3, alpha: 0.5}}",
    "ema=0.9",
    "augment.crop=64",
    "model.backbone=test_resnet",
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with the doubled batch."""
    folder = tmp_path_factory.mktemp("alone")
    write_recipe(folder)
    assert run_forked(train, folder, (*COMMON, "batch_size=4")) == [0]
    return folder / "run"


def vector(path: Path) -> torch.Tensor:
    """All weights and statistics of a checkpoint as one float64 vector."""
    tensors = load_file(path)
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def train_in_two_parts(folder: Path, options: tuple[str, ...]) -> None:
    """Five steps, and five more from the state that they left."""
    train(folder, (*options, "steps=5"))
    train(folder, options, resume=True)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_resumed_midway_are_one_with_the_doubled_batch(
    tmp_path: Path, alone: Path, strategy: str
) -> None:
    write_recipe(tmp_path)
    options, run = (*COMMON, "batch_size=2", f"strategy={strategy}"), tmp_path / "run"
    assert run_forked(train_in_two_parts, tmp_path, options, processes=2) == [0, 0]
    for name in ("last.safetensors", "best.safetensors"):
        expected, found = vector(alone / name), vector(run / name)
        assert float((found - expected).norm() / expected.norm()) < 1e-5
    expected, found = (json.loads((path / "report.json").read_text()) for path in (alone, run))
    assert found["processes"] == 2 and expected["processes"] == 1
    assert found["best"] == expected["best"] and found["last"] == expected["last"]
    rows = [list(csv.DictReader((path / "metrics.csv").open())) for path in (alone, run)]
    losses = [[float(row["loss"]) for row in part if row["loss"]] for part in rows]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and len(losses[0]) == 10

    assert found["steps_in_this_session"] == 5


def joined_norms() -> None:
    """In each of two processes: half the batch through the joined norms, the whole batch through the original ones."""
    distributed.init_process_group("gloo", init_method="env://")
    rank = distributed.get_rank()
    torch.manual_seed(0)
    batch, weight = torch.randn(4, 3, 5, 6) * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1) + 2, torch.randn(4, 3, 5, 6)
    share = slice(2 * rank, 2 * rank + 2)
    for kind, options in ((nn.BatchNorm2d, {}), (BatchNormAct2d, {}), (nn.BatchNorm2d, {"momentum": None})):
        original = kind(3, **options)
        nn.init.normal_(original.weight)
        twin = kind(3, **options)
        twin.load_state_dict(original.state_dict())
        joined: Any = join_batch_norms(nn.Sequential(twin), "cpu")[0]  # type: ignore[index]
        assert type(joined) is JoinedBatchNorm2d and joined.state_dict().keys() == original.state_dict().keys()
        for _ in range(2):
            whole, half = batch.clone().requires_grad_(), batch[share].clone().requires_grad_()
            expected, found = original(whole), joined(half)
            torch.testing.assert_close(found, expected[share])
            (expected * weight).sum().backward()
            (found * weight[share]).sum().backward()
            torch.testing.assert_close(half.grad, whole.grad[share])  # type: ignore[index]
        torch.testing.assert_close(joined.state_dict(), original.state_dict())
        for name in ("weight", "bias"):
            gradient = getattr(joined, name).grad
            distributed.all_reduce(gradient)
            torch.testing.assert_close(gradient, getattr(original, name).grad, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(joined.eval()(batch), original.eval()(batch))
    distributed.destroy_process_group()


def test_batch_norm_spans_the_processes() -> None:
    assert run_forked(joined_norms, processes=2) == [0, 0]


def test_the_shares_of_the_processes_are_the_batches_of_one() -> None:
    shares = [list(RankShare(6, 30, 2, Processes(rank, 3, 3))) for rank in range(3)]
    # what was read before a run was resumed counts too
    assert [len(RankShare(6, 30, 2, Processes(rank, 3, 3))) for rank in range(3)] == [10, 10, 10]
    together = [p for start in range(0, 8, 2) for share in shares for p in share[start : start + 2]]
    assert together == list(range(6, 30)) == list(RankShare(6, 30, 6, Processes()))


@pytest.mark.parametrize(
    ("overrides", "started", "message"),
    [
        (["devices=2"], 0, "devices: 2 processes, but this is one"),
        (["devices=3"], 2, "torchrun started 2 processes"),
        (["device=cuda"], 2, "2 processes for 0 GPUs"),
        (["strategy=fsdp", "precision=fp16"], 2, "precision=bf16 or strategy=ddp"),
        (["strategy=fsdp", "compile=true"], 2, "compile=False or strategy=ddp"),
    ],
)
def test_processes_that_do_not_fit_the_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], started: int, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    if started:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
        for name, value in (("RANK", 0), ("WORLD_SIZE", started), ("LOCAL_WORLD_SIZE", started)):
            monkeypatch.setenv(name, str(value))
    settings = load_settings(TrainSettings, write_recipe(tmp_path), overrides)
    with pytest.raises(UserError, match=message):
        find_processes(settings, settings.device)
