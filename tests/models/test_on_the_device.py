"""The whole head and model through the kernels of every back end that works here, against the definition."""

from __future__ import annotations

import copy

import pytest
import torch
from accuracy import assert_accurate
from operators import DEVICES, KERNELS
from torch import Tensor

import d2ls_fast as d2
from d2ls_fast.backends import backend, preferring
from d2ls_fast.nn.losses import D2LSLoss

CHANNELS, STRIDES = (8, 16, 24, 32), (4, 8, 16, 32)


def results(head: d2.D2LSHead, maps: list[Tensor], target: Tensor) -> dict[str, Tensor]:
    """Loss, gradients of the maps and of the parameters in training; logits in evaluation."""
    head.train()
    leaves = [each.detach().clone().requires_grad_() for each in maps]
    loss = D2LSLoss()(head(leaves, keep_logits=False), target)[0]
    head.zero_grad()
    loss.backward()
    found = {"loss": loss.detach()} | {f"grad map {i}": leaf.grad for i, leaf in enumerate(leaves)}
    found |= {f"grad {name}": p.grad for name, p in head.named_parameters() if p.grad is not None}
    with torch.no_grad():
        found["logits"] = head.eval()(maps).logits
    return {name: tensor for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("channels", [64, 256])
def test_the_head_and_all_its_gradients(name: str, channels: int) -> None:
    """In float32; ``cuda`` with Triton for what it has no kernels for, as the automatic choice would do it."""
    torch.manual_seed(0)
    device = DEVICES[name]
    head = d2.D2LSHead(CHANNELS, 5, channels, num_heads=4, stages=2).to(device)
    sides = [(c, 128 // stride, 96 // stride) for c, stride in zip(CHANNELS, STRIDES, strict=True)]
    maps = [torch.randn(2, *side).to(device) for side in sides]
    target = torch.randint(0, 5, (2, 128, 96)).to(device)
    with backend("reference"):
        truth = results(copy.deepcopy(head).double(), [each.double() for each in maps], target)
        plain = results(copy.deepcopy(head), maps, target)
    with preferring(device, name, "triton"):
        found = results(head, maps, target)
    assert set(found) == set(truth)
    # Of some the exact gradient is zero, as the bias of a key has no influence.
    names = [each for each, tensor in truth.items() if tensor.abs().max() > 1e-9]
    # The parts' errors add up through two stages and back.
    shown = [[values[each] for each in names] for values in (found, plain, truth)]
    assert_accurate(names, *shown, torch.float32, largest_score=200.0)


@pytest.mark.parametrize("name", KERNELS)
def test_the_labels_of_a_model(name: str) -> None:
    torch.manual_seed(0)
    device = DEVICES[name]
    model = d2.create_model("resnet18", 7, embed_dim=64, num_heads=4).to(device)
    images = torch.randn(2, 3, 100, 130).to(device)
    with backend("reference"):
        logits = copy.deepcopy(model).eval().double()(images.double())
    with preferring(device, name, "triton"):
        labels = model.predict(images)
    chosen = logits.gather(1, labels.long().unsqueeze(1)).squeeze(1)
    assert (logits.amax(1) - chosen).max() < 1e-4 * logits.abs().max()
    assert labels.unique().numel() > 1
