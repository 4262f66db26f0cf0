"""Prototypes of a class are told apart by their directions; those of other classes do not matter."""

from __future__ import annotations

import pytest
import torch

from d2ls_fast.nn.diversity import prototype_diversity


def test_orthogonal_parallel_and_opposite_prototypes() -> None:
    axes = torch.eye(4)
    assert prototype_diversity(axes[None], 2) == 0
    assert prototype_diversity(torch.stack([axes[0], 3 * axes[0], axes[1], -axes[1]])[None], 2) == 1
    assert prototype_diversity(torch.stack([axes[0], axes[0], axes[1], axes[2]])[None], 2) == 0.5


def test_it_is_the_mean_over_pairs_classes_and_images() -> None:
    dictionary = torch.randn(3, 4 * 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = [
        torch.nn.functional.cosine_similarity(image[5 * k + p], image[5 * k + q], dim=0) ** 2
        for image in dictionary
        for k in range(4)
        for p in range(5)
        for q in range(5)
        if p != q
    ]
    torch.testing.assert_close(prototype_diversity(dictionary, 5), torch.stack(values).mean())


def test_gradients() -> None:
    dictionary = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda d: prototype_diversity(d, 3), dictionary)


@pytest.mark.parametrize("prototypes", [0, 1, 4])
def test_a_number_of_prototypes_without_pairs_is_refused(prototypes: int) -> None:
    with pytest.raises(ValueError, match="two prototypes or more that divide the 6 rows"):
        prototype_diversity(torch.zeros(1, 6, 4), prototypes)
