"""Amounts are read as people write them; what tensors take is counted; what is chosen fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from d2ls_fast.errors import UserError
from d2ls_fast.inference import memory
from d2ls_fast.inference.memory import LiveTensors, fit, model_bytes, parse_size
from d2ls_fast.inference.predictor import Predictor
from d2ls_fast.models.checkpoint import ModelCard

MB = 2**20


@pytest.mark.parametrize(
    ("text", "size"),
    [("1.5GB", 1.5 * 2**30), ("800MB", 800 * MB), ("2 GiB", 2**31), ("64m", 64 * MB), ("1000000", 1_000_000)],
)
def test_amounts_of_memory(text: str, size: float) -> None:
    assert parse_size(text, "--max-memory") == size


@pytest.mark.parametrize("text", ["much", "1.5XB", "-3GB", ""])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"--max-memory {text}: not an amount of memory; give one like"):
        parse_size(text, "--max-memory")


def test_live_tensors_are_counted_once_and_while_they_live() -> None:
    given = torch.zeros(1000)
    with LiveTensors() as tensors:
        one = given + 1  # 4000 bytes
        view = one[10:]
        del one
        two = view * 2  # 3960 bytes
        del view
        three = two.exp()
        given.add_(1)
        del two, three
    assert tensors.peak == 4000 + 3960
    assert tensors.live == 0


def test_a_larger_window_takes_more(pixel_model: Any, card: ModelCard) -> None:
    predictor = Predictor((pixel_model, card), "cpu")
    small, large = (model_bytes(predictor, side) for side in (64, 128))
    assert small >= 64 * 64 * 4 * 4
    assert large == pytest.approx(4 * small, rel=0.1)


def test_the_budget_chooses_the_window_and_the_batch(
    pixel_model: Any, card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "resident", lambda: 500 * MB)
    found = []
    for limit in (4000, 934, 854, 841):
        predictor = Predictor((pixel_model, card), "cpu", batch=8)
        fit(predictor, [(20_000, 5_000)], 2, 0, limit * MB, False)
        found.append((predictor.window, predictor.batch))
    assert found[0] == (512, 8)
    assert found == sorted(found, reverse=True)
    assert len(set(found)) > 2
    predictor = Predictor((pixel_model, card), "cpu")
    with pytest.raises(
        UserError, match=r"--max-memory 0\.49GB: these scenes need at least 0\.\d\dGB with windows of 128"
    ):
        fit(predictor, [(100, 100)], 2, 0, 500 * MB, False)
    with pytest.raises(UserError, match="with windows of 512"):
        fit(predictor, [(100, 100)], 2, 0, 841 * MB, True)
