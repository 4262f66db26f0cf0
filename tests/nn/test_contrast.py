"""Contrastive terms against loops over their definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from d2ls_fast.nn.contrast import PixelDictionaryInfoNCE, RatioContrastiveLoss


def test_ratio() -> None:
    torch.manual_seed(0)
    d = torch.randn(3, 4, 8, dtype=torch.float64)
    mu = d.mean(0)
    intra = (d - mu).square().sum(-1).mean()
    pairs = [(mu[j] - mu[k]).square().sum() for k in range(4) for j in range(k)]
    torch.testing.assert_close(RatioContrastiveLoss()(d), intra / (torch.stack(pairs).mean() + 1e-6))


@pytest.mark.parametrize("shape", [(1, 4, 8), (3, 1, 8)])
def test_ratio_is_zero_where_there_is_nothing_to_compare(shape: tuple[int, int, int]) -> None:
    d = torch.randn(shape, requires_grad=True)
    loss = RatioContrastiveLoss()(d)
    loss.backward()
    assert loss.item() == 0.0
    assert d.grad is not None and torch.equal(d.grad, torch.zeros_like(d))


def nce_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    pixels, dictionary = torch.randn(2, 12, 8).double(), torch.randn(2, 4, 8).double()
    target = torch.randint(0, 3, (2, 12))  # class 3 is absent
    target[0, :3], target[1] = 255, target[1].where(torch.arange(12) != 5, 255)
    scores = torch.stack([F.normalize(pixels[b], dim=-1) @ F.normalize(dictionary[b], dim=-1).T for b in range(2)])
    return pixels, dictionary, target, scores / 0.1


def test_pixel_direction() -> None:
    pixels, dictionary, target, scores = nce_case()
    wanted = F.cross_entropy(scores.transpose(1, 2), target, ignore_index=255)
    torch.testing.assert_close(PixelDictionaryInfoNCE()(pixels, dictionary, target), wanted)
    shaped = PixelDictionaryInfoNCE()(pixels, dictionary, target.view(2, 3, 4))
    torch.testing.assert_close(shaped, wanted)


def test_balanced() -> None:
    pixels, dictionary, target, scores = nce_case()
    each = F.cross_entropy(scores.transpose(1, 2), target, ignore_index=255, reduction="none")
    wanted = torch.stack([each[target == k].mean() for k in range(3)]).mean()
    torch.testing.assert_close(PixelDictionaryInfoNCE(balanced=True)(pixels, dictionary, target), wanted)


def test_dictionary_direction_and_both() -> None:
    pixels, dictionary, target, scores = nce_case()
    losses = []
    for b in range(2):
        for k in range(4):
            if (target[b] == k).any():
                column = scores[b, :, k]
                losses.append(column[target[b] != 255].logsumexp(0) - column[target[b] == k].mean())
    wanted = torch.stack(losses).mean()
    got = PixelDictionaryInfoNCE(direction="dictionary")(pixels, dictionary, target)
    torch.testing.assert_close(got, wanted)
    forward = PixelDictionaryInfoNCE()(pixels, dictionary, target)
    both = PixelDictionaryInfoNCE(direction="both")(pixels, dictionary, target)
    torch.testing.assert_close(both, (wanted + forward) / 2)


def test_prototypes_of_a_class_are_all_positive() -> None:
    pixels, dictionary, target, scores = nce_case()
    target = target.where(target != 2, 1)
    log_p = scores.log_softmax(-1).view(2, 12, 2, 2).logsumexp(-1)
    wanted = F.nll_loss(log_p.transpose(1, 2), target, ignore_index=255)
    torch.testing.assert_close(PixelDictionaryInfoNCE(prototypes=2)(pixels, dictionary, target), wanted)


@pytest.mark.parametrize("direction", ["pixels", "dictionary", "both"])
def test_images_without_labels(direction: str) -> None:
    pixels = torch.randn(2, 6, 8, requires_grad=True)
    loss = PixelDictionaryInfoNCE(direction=direction)(pixels, torch.randn(2, 3, 8), torch.full((2, 6), 255))  # type: ignore[arg-type]
    loss.backward()
    assert loss.item() == 0.0
    assert pixels.grad is not None and torch.equal(pixels.grad, torch.zeros_like(pixels))


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature"):
        PixelDictionaryInfoNCE(temperature=0.0)
    with pytest.raises(ValueError, match="direction must be one of pixels, dictionary, both"):
        PixelDictionaryInfoNCE(direction="up")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prototypes"):
        PixelDictionaryInfoNCE(prototypes=0)
    with pytest.raises(ValueError, match="target must label"):
        PixelDictionaryInfoNCE()(torch.randn(1, 4, 8), torch.randn(1, 2, 8), torch.zeros(1, 5, dtype=torch.long))
