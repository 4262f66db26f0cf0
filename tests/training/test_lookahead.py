"""Lookahead against its formula, and its state."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from d2ls_fast.training.config import LookaheadSettings, OptimizerSettings
from d2ls_fast.training.lookahead import LookaheadAdamW
from d2ls_fast.training.optim import build_optimizer


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        optimizer.zero_grad()
        inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        model(inputs).square().mean().backward()
        optimizer.step()


def lookahead(model: nn.Module, every: int = 3, alpha: float = 0.25) -> LookaheadAdamW:
    return LookaheadAdamW(model.parameters(), every, alpha, lr=1e-2)


def test_every_k_steps_the_weights_go_alpha_of_the_way() -> None:
    model, fast = network(), network()
    optimizer, plain = lookahead(model), torch.optim.AdamW(fast.parameters(), lr=1e-2)
    slow = [value.detach().clone() for value in model.parameters()]
    for cycle in range(3):
        advance(model, optimizer, 3 * cycle, 3 * cycle + 2)
        advance(fast, plain, 3 * cycle, 3 * cycle + 2)
        for mine, theirs in zip(model.parameters(), fast.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs)  # between two slow steps it is plain AdamW
        advance(model, optimizer, 3 * cycle + 2, 3 * cycle + 3)
        advance(fast, plain, 3 * cycle + 2, 3 * cycle + 3)
        slow = [old + 0.25 * (new.detach() - old) for old, new in zip(slow, fast.parameters(), strict=True)]
        for mine, theirs, expected in zip(model.parameters(), fast.parameters(), slow, strict=True):
            torch.testing.assert_close(mine.detach(), expected)
            theirs.data.copy_(expected)


def test_alpha_one_is_plain_adamw() -> None:
    model, plain = network(), network()
    advance(model, lookahead(model, alpha=1.0), 0, 7)
    advance(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2), 0, 7)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_stored_state_goes_on_in_a_new_process_bit_for_bit(stop: int) -> None:
    whole, first, second = network(), network(), network()
    advance(whole, lookahead(whole), 0, 8)
    optimizer = lookahead(first)
    advance(first, optimizer, 0, stop)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert sorted(state["optimizer"]["state"]) == [0, 1, 2, 3]  # by position, not by object
    second.load_state_dict(state["model"])
    optimizer = lookahead(second)
    optimizer.load_state_dict(state["optimizer"])
    advance(second, optimizer, stop, 8)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_a_parameter_whose_gradient_comes_late_starts_from_where_it_was() -> None:
    model = network()
    late = model[1].weight
    late.requires_grad_(False)
    optimizer, start = lookahead(model, every=2, alpha=0.5), late.detach().clone()
    advance(model, optimizer, 0, 2)
    late.requires_grad_(True)
    advance(model, optimizer, 2, 3)
    assert torch.equal(optimizer.state[late]["slow"], start)


def test_a_step_skipped_by_the_gradient_scaler_does_not_count() -> None:
    model = network()
    optimizer, scaler = lookahead(model), torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(3):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(2, 3)).sum() * (float("inf") if step == 1 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert [group["fast_steps"] for group in optimizer.param_groups] == [2]


def test_a_closure_is_evaluated_once_and_its_loss_returned() -> None:
    model, calls = network(), []

    def closure() -> float:
        calls.append(1)
        loss = model(torch.ones(2, 3)).square().mean()
        loss.backward()
        return float(loss.detach())

    before = [value.detach().clone() for value in model.parameters()]
    optimizer = lookahead(model, every=1, alpha=0.5)
    assert optimizer.step(closure) > 0 and len(calls) == 1
    for value, start in zip(model.parameters(), before, strict=True):
        assert torch.equal(optimizer.state[value]["slow"], value) and not torch.equal(value, start)


def test_settings_choose_it() -> None:
    model = network()
    assert type(build_optimizer(model, OptimizerSettings())) is torch.optim.AdamW
    optimizer = build_optimizer(model, OptimizerSettings(lookahead=LookaheadSettings(steps=4, alpha=0.1)))
    assert isinstance(optimizer, LookaheadAdamW) and (optimizer.every, optimizer.alpha) == (4, 0.1)
