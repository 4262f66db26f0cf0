"""The head: its options, its training outputs, torch.compile."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from d2ls_fast.backends import backend
from d2ls_fast.models.head import D2LSHead
from d2ls_fast.nn import resident
from d2ls_fast.nn.classifier import PixelScores
from d2ls_fast.nn.losses import D2LSLoss

CHANNELS = [8, 12, 16, 24]


def features(batch: int = 2, height: int = 8, width: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(4)]
    return [torch.randn(batch, c, *s, generator=generator) for c, s in zip(CHANNELS, sizes, strict=True)]


def small_head(**options: object) -> D2LSHead:
    torch.manual_seed(0)
    return D2LSHead(CHANNELS, 5, **{"embed_dim": 32, "num_heads": 4, "stages": 2, **options})  # type: ignore[arg-type]


def test_training_and_evaluation_outputs() -> None:
    head = small_head()
    out = head(features())
    assert out.logits.shape == (2, 5, 32, 48)
    assert out.aux_logits is not None and out.aux_logits.shape == out.logits.shape
    assert out.dictionary.shape == (2, 5, 32) and out.pixels.shape == (2, 96, 32)
    assert out.contrastive is not None and out.contrastive.item() > 0
    evaluated = head.eval()(features())
    assert evaluated.aux_logits is None and evaluated.contrastive is None
    torch.testing.assert_close(evaluated.logits, out.logits)


def test_auxiliary_branch_runs_the_static_dictionary_through_the_same_weights() -> None:
    head = small_head()
    maps = features()
    out = head(maps)
    pixels = head.neck(maps)
    dictionary, refined = head.interaction(pixels, head.positions(8, 12), head.dictionary.static(2))
    torch.testing.assert_close(out.aux_logits, head.classifier(refined, dictionary, (8, 12)))


@pytest.mark.parametrize(
    "options",
    [
        {"alternating": False},
        {"dynamic": False},
        {"contrastive": False, "auxiliary": False},
        {"prototypes": 3, "prototype_reduction": "mean"},
        {"stages": 1, "query_ratio": 1, "neck_bias": True},
    ],
)
def test_options_train_every_parameter_and_agree_between_back_ends(options: dict[str, object]) -> None:
    head = small_head(**options).double()
    maps = [f.double() for f in features(height=7, width=9)]
    with backend("reference"):
        wanted = head(maps)
    with backend("torch"):
        got = head(maps)
    torch.testing.assert_close(got.logits, wanted.logits, rtol=1e-9, atol=1e-9)
    assert got.logits.shape == (2, 5, 28, 36)
    off = not options.get("dynamic", True)
    assert (got.aux_logits is None) == (off or options.get("auxiliary") is False)
    assert (got.contrastive is None) == (off or options.get("contrastive") is False)
    sum(t.square().mean() for t in (got.logits, got.aux_logits) if t is not None).backward()  # type: ignore[union-attr]
    assert [name for name, p in head.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("options", [{}, {"dynamic": False}, {"prototypes": 3, "prototype_reduction": "max"}])
def test_training_without_logits_is_the_same_training(options: dict[str, object]) -> None:
    head, loss = small_head(**options), D2LSLoss()
    target = torch.randint(0, 5, (2, 32, 48))
    results = []
    for keep_logits in (True, False):
        head.zero_grad()
        out = head(features(), keep_logits)
        total, _ = loss(out, target)
        total.backward()
        results.append([total.detach(), *(p.grad for p in head.parameters() if p.grad is not None)])
    assert isinstance(out.logits, PixelScores) and isinstance(out.aux_logits, (PixelScores, type(None)))
    torch.testing.assert_close(out.logits.logits(), head(features()).logits)
    for kept, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, kept, rtol=1e-4, atol=1e-6)


def test_predict_equals_the_largest_logit() -> None:
    head = small_head().eval()
    labels, confidence = head.predict(features(), (30, 41))
    probability = head(features()).logits.softmax(1)[..., :30, :41]
    assert torch.equal(labels.long(), probability.argmax(1))
    torch.testing.assert_close(confidence, probability.amax(1))


@pytest.mark.parametrize("name", ["reference", "torch"])
def test_bfloat16_autocast_trains(name: str) -> None:
    head = small_head()
    exact = head(features())
    with backend(name), torch.autocast("cpu", dtype=torch.bfloat16):
        out = head(features())
    assert out.logits.dtype is torch.float32 and out.dictionary.dtype is torch.float32
    torch.testing.assert_close(out.logits, exact.logits, rtol=0.1, atol=0.1)
    out.logits.square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_compiles_without_a_graph_break() -> None:
    head = small_head(stages=1).train()
    maps = features(batch=1, height=4, width=4)
    with backend("torch"):
        wanted = head(maps)
        wanted.logits.square().mean().backward()
        gradients = [None if p.grad is None else p.grad.clone() for p in head.parameters()]
        head.zero_grad()
        torch._dynamo.reset()
        # aot_eager traces forward and backward as inductor would, without spending its compile time.
        out = torch.compile(head, fullgraph=True, backend="aot_eager")(maps)
        out.logits.square().mean().backward()
    torch.testing.assert_close(out.logits, wanted.logits)
    torch.testing.assert_close(out.contrastive, wanted.contrastive)
    for parameter, gradient in zip(head.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_training_without_logits_compiles_whole() -> None:
    head, loss = small_head(stages=1), D2LSLoss()
    maps, target = features(batch=1, height=4, width=4), torch.randint(0, 5, (1, 16, 16))

    def step(maps: list[Tensor], target: Tensor) -> Tensor:
        return loss(head(maps, keep_logits=False), target)[0]

    wanted = step(maps, target)
    torch._dynamo.reset()
    total = torch.compile(step, fullgraph=True, backend="aot_eager")(maps, target)
    total.backward()
    torch.testing.assert_close(total, wanted)
    assert all(p.grad is not None for p in head.parameters())


def test_labels_by_the_resident_kernel_are_the_same() -> None:
    head, maps = small_head().double().eval(), [feature.double() for feature in features()]
    with torch.no_grad():
        wanted = head.predict(maps, (30, 41))
        with patch.object(resident, "serves", lambda *_: True), patch.object(head.classifier, "predict", None):
            got = head.predict(maps, (30, 41))
    assert torch.equal(got[0], wanted[0])
    torch.testing.assert_close(got[1], wanted[1])
