"""The operators in PyTorch's flop counter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from d2ls_fast import ops
from d2ls_fast.backends import backend
from d2ls_fast.nn import D2LSLoss, PixelDictionaryInfoNCE
from d2ls_fast.nn.classifier import PixelClassifier
from d2ls_fast.nn.interaction import AlternatingCrossAttention
from d2ls_fast.nn.pyramid import PyramidNeck
from d2ls_fast.ops.flops import count_flops, register

WITHOUT_PRODUCTS = {"ratio_contrast", "build_info"}


def under(name: str, run: Callable[[], object]) -> int:
    with backend(name):
        return count_flops(run)


def test_attend_counts_its_two_products() -> None:
    b, n, j, c = 2, 60, 14, 32
    pixels, query = torch.randn(b, n, c), torch.randn(b, j, c)
    assert count_flops(lambda: ops.attend(pixels, torch.randn(n, c), query)) == 2 * (2 * b * j * n * c)
    assert count_flops(lambda: pixels @ query.transpose(1, 2)) == 2 * b * j * n * c  # the counter itself


def test_every_operator_with_products_is_known() -> None:
    register()
    names = {
        schema.name.removeprefix("d2ls_fast::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("d2ls_fast::") and not schema.name.startswith("d2ls_fast::cuda_")
    }  # cuda_attend and the like are what attend_cuda is made of
    unknown = {name for name in names if getattr(torch.ops.d2ls_fast, name) not in flop_registry}
    assert {name.removesuffix("_backward").removesuffix("_triton") for name in unknown} == WITHOUT_PRODUCTS & names


@pytest.mark.parametrize("form", ["folded", "projected"])
def test_the_fused_interaction_counts_what_the_same_algebra_counts_in_pytorch(form: str) -> None:
    torch.manual_seed(0)
    module = AlternatingCrossAttention(32, 4, stages=2, form=form)
    tensors = torch.randn(2, 48, 32), torch.randn(48, 32), torch.randn(2, 5, 32)
    run = torch.no_grad()(lambda: module(*tensors))
    with FlopCounterMode(display=False) as counter:
        run()
    counted = under("auto", run)
    assert counter.get_total_flops() == counted == under("torch", run) > 0


def test_neck_labels_and_losses_are_counted_forward_and_backward() -> None:
    torch.manual_seed(0)
    neck, classifier = PyramidNeck([8, 12], 32), PixelClassifier(3, 32)
    features = [torch.randn(2, 8, 8, 8), torch.randn(2, 12, 4, 4)]
    dictionary, target = torch.randn(2, 3, 32), torch.randint(0, 3, (2, 32, 32))
    scores = classifier.scores(torch.randn(2, 64, 32), dictionary, (8, 8))
    logits_cost = 2 * 2 * 3 * (32 * 32) * (32 // 16)
    assert count_flops(lambda: neck(features)) == under("torch", lambda: neck(features)) > 0
    assert count_flops(scores.logits) == count_flops(scores.labels) == logits_cost
    assert count_flops(lambda: D2LSLoss()(scores, target)) == logits_cost
    pixels = torch.randn(2, 64, 32, requires_grad=True)
    forward = count_flops(lambda: PixelDictionaryInfoNCE()(pixels, dictionary, target[:, ::4, ::4]))
    assert forward >= 2 * 2 * 64 * 3 * 32

    def step() -> None:
        learning = classifier.scores(pixels, dictionary, (8, 8))
        D2LSLoss()(learning, target)[0].backward()

    assert count_flops(step) > 3 * logits_cost
