"""What one training step does: gradients for everything, none that is not finite, draws of its own, compiled or not."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_recipe import write_recipe

from d2ls_fast.config import load_settings
from d2ls_fast.errors import UserError
from d2ls_fast.models.model import create_model
from d2ls_fast.nn.losses import D2LSLoss
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.fit import fit


def train(folder: Path, *overrides: str) -> list[float]:
    """The losses of a tiny run."""
    output = folder / "run"
    settings = load_settings(TrainSettings, write_recipe(folder), ("steps=3", *overrides))
    fit(settings, overwrite=True, console=Console(quiet=True))
    return [float(row["loss"]) for row in csv.DictReader((output / "metrics.csv").open()) if row["loss"]]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stages": 2},
        {"alternating": False},
        {"dynamic": False},
        {"auxiliary": False},
        {"contrastive": False},
        {"query_ratio": 1},
        {"prototypes": 2},
        {"prototypes": 2, "prototype_reduction": "max"},
        {"alternating": False, "auxiliary": False, "contrastive": False},
        {"backbone": "convnext_atto"},
        {"backbone": "tf_efficientnet_lite0"},
    ],
    ids=str,
)
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    settings = {"backbone": "mobilenetv3_small_050", "embed_dim": 32, "num_heads": 2, "stages": 1} | options
    model = create_model(num_classes=3, **settings).train()
    total, _ = D2LSLoss()(model(torch.randn(2, 3, 32, 32), keep_logits=False), torch.randint(0, 3, (2, 32, 32)))
    total.backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []


def spoil_gradient(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """One infinite value in the gradient of one parameter at the given step; the loss stays finite."""
    original, calls = D2LSLoss.forward, iter(range(1, 1000))

    def forward(self: D2LSLoss, output: Any, target: torch.Tensor) -> Any:
        if next(calls) == step:
            output.logits.norm_bias.register_hook(lambda gradient: gradient * float("inf"))
        return original(self, output, target)

    monkeypatch.setattr(D2LSLoss, "forward", forward)


def test_the_settings_that_forks_have_train(tmp_path: Path) -> None:
    settings = ("model.prototypes=3", "loss.diversity_weight=0.1", "ema=0.9", "model.stages=5", "loss.align=true")
    assert len(train(tmp_path, *settings)) == 3


def test_diversity_without_prototypes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss\.diversity_weight: .* set model\.prototypes to 2 or more"):
        train(tmp_path, "loss.diversity_weight=0.1")


@pytest.mark.parametrize("clip", ["1.0", "null"])
def test_a_gradient_that_is_not_finite_ends_the_run_and_names_step_and_parameter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: str
) -> None:
    spoil_gradient(monkeypatch, step=2)
    with pytest.raises(UserError, match=r"step 2: the gradient of head\.classifier\.norm\.bias is not finite \(1 "):
        train(tmp_path, f"gradient_clip={clip}")


def test_gradients_are_clipped_to_the_norm_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, closure: Any = None) -> Any:
        def watched() -> Any:
            loss = closure()
            gradients = [p.grad for group in self.param_groups for p in group["params"]]
            norms.append(float(torch.nn.utils.get_total_norm(gradients)))
            return loss

        return original(self, watched)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    train(tmp_path, "gradient_clip=0.01")
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


def test_random_draws_of_a_step_depend_on_seed_and_step_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws: list[float] = []
    original = D2LSLoss.forward

    def forward(self: D2LSLoss, output: Any, target: torch.Tensor) -> Any:
        draws.append(float(torch.rand(())))
        return original(self, output, target)

    monkeypatch.setattr(D2LSLoss, "forward", forward)
    train(tmp_path)
    train(tmp_path, "evaluate_every=1")
    first, second = draws[:3], draws[3:]
    assert first == second and len(set(first)) == 3
    train(tmp_path, "seed=7")
    assert not set(draws[6:]) & set(first)


def test_a_compiled_run_has_the_losses_of_an_eager_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    original = torch.nn.Module.compile

    def compile_quickly(self: torch.nn.Module) -> None:
        compiled.append(type(self).__name__)
        original(self, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_quickly)
    eager = train(tmp_path, "model.backbone=test_resnet")
    assert train(tmp_path, "model.backbone=test_resnet", "compile=true") == pytest.approx(eager, rel=1e-4)
    assert compiled == ["D2LS"]
