"""Static and dynamic dictionary."""

from __future__ import annotations

import pytest
import torch

from d2ls_fast.nn.dictionary import ClassDictionary


def test_dynamic_entries_are_the_mixture_of_the_variants() -> None:
    layer = ClassDictionary(3, embed_dim=8, prototypes=2, query_ratio=4, deepest_channels=5)
    assert layer.expand is not None and layer.mixture is not None
    deepest = torch.randn(2, 5, 3, 4)
    weights, variants = layer.mixture(deepest), layer.expand(layer.entries).view(6, 4, 8)
    got = layer.dynamic(deepest)
    assert got.shape == (2, 6, 8)
    for b in range(2):
        for k in range(6):
            torch.testing.assert_close(got[b, k], sum(weights[b, k, r] * variants[k, r] for r in range(4)))


def test_mixture_pools_maximum_and_mean() -> None:
    layer = ClassDictionary(2, embed_dim=8, query_ratio=3, deepest_channels=4).mixture
    assert layer is not None
    deepest = torch.randn(1, 4, 2, 3)
    m = layer.project(deepest.flatten(2).transpose(1, 2))
    pooled = torch.cat((layer.max_branch(m[..., :4].amax(1)), layer.mean_branch(m[..., 4:].mean(1))), -1)
    wanted = layer.output(layer.hidden(pooled).relu()).view(1, 2, 3).softmax(-1)
    got = layer(deepest)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(got.sum(-1), torch.ones(1, 2))


def test_static_entries_are_the_same_for_every_image() -> None:
    layer = ClassDictionary(3, embed_dim=8)
    assert torch.equal(layer.static(4), layer.entries.expand(4, 3, 8))
    with pytest.raises(ValueError, match="static"):
        layer.dynamic(torch.randn(1, 5, 2, 2))


@pytest.mark.parametrize("option", ["num_classes", "prototypes", "query_ratio"])
def test_zero_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be at least 1"):
        ClassDictionary(**{"num_classes": 2, "embed_dim": 8, option: 0})


def test_autocast_keeps_the_dictionary_in_float32() -> None:
    layer = ClassDictionary(3, embed_dim=8, deepest_channels=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.dynamic(torch.randn(2, 5, 3, 4)).dtype is torch.float32
