"""Class prototypes: running masked means, cosine scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from d2ls_fast.models.peers.prototype import ClassPrototypes


def pixels_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = F.normalize(torch.randn(2, 8, 3, 4, generator=generator), dim=1)
    target = torch.randint(0, 2, (2, 11, 14), generator=generator)  # the last rows and columns are padding
    target[0, :5] = 255
    return pixels, target


def masked_mean(pixels: torch.Tensor, target: torch.Tensor, k: int) -> torch.Tensor:
    """The mean over every labelled full-size pixel of the embedding of its stride-4 pixel."""
    spread = pixels.repeat_interleave(4, 2).repeat_interleave(4, 3)[..., : target.shape[1], : target.shape[2]]
    return spread.transpose(0, 1)[:, target == k].mean(1)


def test_the_first_appearance_sets_the_mean_and_later_ones_move_it() -> None:
    prototypes, (pixels, target) = ClassPrototypes(3, 8), pixels_and_labels()
    unseen = prototypes.means[2].clone()
    prototypes.learn(pixels, target)
    first = [masked_mean(pixels, target, k) for k in (0, 1)]
    torch.testing.assert_close(prototypes.means[:2], torch.stack(first))
    assert torch.equal(prototypes.means[2], unseen)
    assert prototypes.appearances.tolist() == [1, 1, 0]

    prototypes.learn(-pixels, target)
    kept = 1 / 11
    torch.testing.assert_close(prototypes.means[0], (kept - (1 - kept)) * first[0])


def test_scores_are_scaled_cosines_and_no_gradient_reaches_the_prototypes() -> None:
    prototypes, (pixels, target) = ClassPrototypes(2, 8), pixels_and_labels()
    prototypes.learn(pixels, target)
    scores = prototypes(pixels)
    expected = F.cosine_similarity(pixels, masked_mean(pixels, target, 1).view(1, 8, 1, 1), dim=1)
    torch.testing.assert_close(scores[:, 1], 20 * expected)
    assert list(prototypes.parameters()) == []


def test_means_and_scores_keep_their_precision_under_autocast() -> None:
    torch.manual_seed(0)
    prototypes, (pixels, target) = ClassPrototypes(2, 8), pixels_and_labels()
    with torch.autocast("cpu", torch.bfloat16):
        prototypes.learn(pixels, target)
        scores = prototypes(pixels)
    torch.testing.assert_close(prototypes.means[0], masked_mean(pixels, target, 0))
    assert scores.dtype is torch.float32


def test_labels_that_are_all_ignored_change_nothing() -> None:
    prototypes, (pixels, target) = ClassPrototypes(2, 8), pixels_and_labels()
    before = prototypes.means.clone()
    prototypes.learn(pixels, torch.full_like(target, 255))
    assert torch.equal(prototypes.means, before) and prototypes.appearances.sum() == 0
