"""Parameter groups, learning-rate schedule, averaged weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from d2ls_fast.training.config import OptimizerSettings, ScheduleSettings
from d2ls_fast.training.optim import averaged_copy, learning_rate_factor, parameter_groups


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)


def test_every_parameter_is_in_one_group_and_vectors_are_not_decayed() -> None:
    model = Small()
    groups = {group["name"]: group for group in parameter_groups(model, OptimizerSettings(lr=1e-3, weight_decay=0.1))}
    assert set(groups) == {"backbone-decay", "backbone-no_decay", "head-decay", "head-no_decay"}
    listed = [parameter for group in groups.values() for parameter in group["params"]]
    assert sorted(map(id, listed)) == sorted(map(id, model.parameters()))
    for name, group in groups.items():
        assert group["weight_decay"] == (0.1 if name.endswith("-decay") else 0.0)
        assert all((parameter.ndim > 1) == name.endswith("-decay") for parameter in group["params"])


def test_backbone_factor_reaches_the_update() -> None:
    model = Small()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    settings = OptimizerSettings(lr=1e-2, backbone_lr=0.1, weight_decay=0.0)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # Adam's first step moves every weight by its learning rate
    for name, value in model.named_parameters():
        expected = 1e-3 if name.startswith("backbone.") else 1e-2
        torch.testing.assert_close(before[name] - value.detach(), torch.full_like(value, expected), rtol=1e-3, atol=0)


def test_frozen_parameters_are_left_out() -> None:
    model = Small()
    model.backbone.requires_grad_(False)
    assert {group["name"] for group in parameter_groups(model, OptimizerSettings())} == {"head-decay", "head-no_decay"}


def test_cosine_warms_up_peaks_and_ends_at_the_final_factor() -> None:
    factor = learning_rate_factor(ScheduleSettings(kind="cosine", warmup=4, final=0.1), total_steps=104)
    assert [factor(step) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factor(4) == 1.0
    assert factor(54) == pytest.approx(0.55)
    assert factor(104) == factor(200) == pytest.approx(0.1)


def test_poly_and_constant() -> None:
    assert learning_rate_factor(ScheduleSettings(kind="poly", power=0.9), 100)(50) == pytest.approx(0.5**0.9)
    assert learning_rate_factor(ScheduleSettings(kind="constant"), 100)(99) == 1.0


def test_average_starts_fast_then_follows_the_decay_and_copies_buffers() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    weight, norm = model[0].weight, model[1]
    weight.data.fill_(0.0)
    average = averaged_copy(model, decay=0.5)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    expected = None
    for count in range(8):
        weight.data.fill_(float(count + 1))
        norm.running_mean.fill_(float(count + 1))
        average.update_parameters(model)
        decay = min(0.5, (1 + count) / (10 + count))
        expected = float(count + 1) if expected is None else decay * expected + (1 - decay) * (count + 1)
        assert float(average.module[0].weight) == pytest.approx(expected)
    assert float(average.module[1].running_mean) == 8.0


def test_the_rate_stands_still_within_an_epoch_and_follows_the_cosine_of_whole_epochs() -> None:
    settings = ScheduleSettings(kind="cosine", final=0.0125, per_epoch=True)
    factor = learning_rate_factor(settings, total_steps=30, steps_per_epoch=3)
    weight = nn.Parameter(torch.zeros(()))
    reference = torch.optim.AdamW([weight], lr=8e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=10, eta_min=1e-6)
    for epoch in range(10):
        expected = schedule.get_last_lr()[0]
        assert [8e-5 * factor(3 * epoch + step) for step in range(3)] == pytest.approx([expected] * 3)
        reference.step()
        schedule.step()


def test_vectors_are_decayed_when_asked_for() -> None:
    groups = parameter_groups(Small(), OptimizerSettings(decay_vectors=True))
    assert {group["name"] for group in groups} == {"backbone-decay", "head-decay"}
    assert all(group["weight_decay"] == 0.01 for group in groups)
