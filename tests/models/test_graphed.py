"""CUDA graphs: the labels of predict, one line for what does not fit, and nothing in the way that a capture forbids.

Where PyTorch sees a GPU the graphs are real; elsewhere a stand-in records and replays them on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from graph_stand_in import standing_in
from torch import Tensor

import d2ls_fast as d2
from d2ls_fast.models import graphed
from d2ls_fast.models.graphed import Graphs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def graphs() -> Iterator[None]:
    if DEVICE.type == "cuda":
        yield
        return
    with standing_in(), patch.object(graphed, "_gpu", lambda parameter: parameter.device):
        yield


@pytest.fixture(scope="module")
def model() -> d2.D2LS:
    torch.manual_seed(0)
    return d2.create_model("resnet18", 5, in_chans=4, stages=2, embed_dim=64).to(DEVICE)


def images(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def test_a_replay_gives_the_labels_of_predict(graphs: None, model: d2.D2LS) -> None:
    model.train()
    compiled = model.compile_for_inference((64, 70), batch=2)
    assert model.training
    earlier = []
    for seed in range(3):
        batch = images(seed, 2, 4, 64, 70)
        labels = compiled.predict(batch)
        assert torch.equal(labels, model.predict(batch)) and labels.unique().numel() > 1
        earlier.append((labels, labels.clone()))
    # Results are the caller's own: later calls leave them alone.
    assert all(torch.equal(given, then) for given, then in earlier)
    with patch.object(model, "classify", side_effect=AssertionError("a replay runs no Python of the model")):
        assert torch.equal(compiled.predict(images(0, 2, 4, 64, 70)), earlier[0][0])


def test_confidence_and_changed_weights(graphs: None, model: d2.D2LS) -> None:
    compiled = model.compile_for_inference(64, return_confidence=True)
    batch = images(7, 1, 4, 64, 64)
    with torch.no_grad():
        model.head.classifier.hypernetwork[-1].weight.mul_(-1)
    expected = model.predict(batch, return_confidence=True)
    for result, wanted in zip(compiled.predict(batch), expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (2, 3, 64, 64), (2, 4, 64, 96)])
def test_images_of_another_kind_are_refused_in_one_line(graphs: None, model: d2.D2LS, shape: tuple[int, ...]) -> None:
    compiled = model.compile_for_inference(64, batch=2)
    with pytest.raises(d2.UserError, match=r"must be \[2, 4, 64, 64\] torch.float32 .* got .*; convert them"):
        compiled.predict(images(0, *shape))
    with pytest.raises(d2.UserError, match=r"torch.float16"):
        compiled.predict(images(0, 2, 4, 64, 64).half())


def test_wrong_settings_are_refused(graphs: None, model: d2.D2LS) -> None:
    for options in ({"size": 16}, {"size": 64, "batch": 0}):
        with pytest.raises(d2.UserError, match="at least 32 x 32, and a batch holds at least 1"):
            model.compile_for_inference(**options)
    with pytest.raises(d2.UserError, match=r"dtype torch.float64: the parameters are torch.float32"):
        model.compile_for_inference(64, dtype=torch.float64)


def test_without_a_gpu_it_says_what_to_do(model: d2.D2LS) -> None:
    with (
        patch("torch.cuda.is_available", return_value=False),
        pytest.raises(d2.UserError, match=r"no GPU.*use pr"),
    ):
        model.compile_for_inference(64)
    on_cpu = d2.create_model("resnet18", 3)
    with patch("torch.cuda.is_available", return_value=True), pytest.raises(d2.UserError, match=r"model.cuda\(\) firs"):
        on_cpu.compile_for_inference(64)


def test_more_shapes_than_the_limit_run_without_a_graph(graphs: None) -> None:
    calls = []

    def doubled(tensor: Tensor) -> list[Tensor]:
        calls.append(tensor.shape)
        return [2 * tensor]

    run = Graphs(doubled, limit=2)
    for n in (3, 4, 5, 3, 4, 5):
        tensor = torch.arange(float(n), device=DEVICE)
        assert torch.equal(run(tensor)[0], 2 * tensor)
    captured = graphed.WARM_UP + 1
    assert [calls.count((n,)) for n in (3, 4, 5)] == [captured, captured, 2]
