"""The class dictionary: static entries, and their image-dependent mixture."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MixtureWeights(nn.Module):
    r"""How much of each of the R variants of every entry an image needs.

    ``m = Linear(f)``; its first half is max-pooled over the image, its second half mean-pooled, each followed by a
    linear layer; then ``Linear -> ReLU -> Linear`` and a softmax over R.

    Args:
        in_channels: channels of the deepest backbone map.
        embed_dim: C, even.
        entries: number of dictionary entries K * P.
        query_ratio: R.
    """

    def __init__(self, in_channels: int, embed_dim: int, entries: int, query_ratio: int) -> None:
        super().__init__()
        half = embed_dim // 2
        self.query_ratio = query_ratio
        self.project = nn.Linear(in_channels, embed_dim)
        self.max_branch = nn.Linear(half, half)
        self.mean_branch = nn.Linear(half, half)
        self.hidden = nn.Linear(embed_dim, 2 * embed_dim)
        self.output = nn.Linear(2 * embed_dim, entries * query_ratio)

    def forward(self, deepest: Tensor) -> Tensor:
        """``deepest [B, c, h, w]`` -> weights ``[B, entries, R]`` that sum to one over R."""
        highest, averaged = self.halves(deepest)
        return self.weigh(highest.amax(1), averaged.to(self.hidden.weight.dtype).mean(1))

    def halves(self, deepest: Tensor) -> tuple[Tensor, Tensor]:
        """What is to be max-pooled and what is to be mean-pooled over an image's cells, each ``[B, h * w, C / 2]``."""
        highest, averaged = self.project(deepest.flatten(2).transpose(1, 2)).chunk(2, dim=-1)
        return highest, averaged

    def weigh(self, highest: Tensor, mean: Tensor) -> Tensor:
        """Pooled halves, each ``[B, C / 2]`` -> weights ``[B, entries, R]``."""
        with torch.autocast(highest.device.type, enabled=False):
            dtype = self.hidden.weight.dtype
            pooled = torch.cat((self.max_branch(highest.to(dtype)), self.mean_branch(mean.to(dtype))), dim=-1)
            scores = self.output(self.hidden(pooled).relu())
            return scores.unflatten(-1, (-1, self.query_ratio)).softmax(-1)


class ClassDictionary(nn.Module):
    r"""One or more learned entries per class, static or mixed anew for every image.

    Static entries :math:`S \in R^{KP \times C}`. Dynamic entries: with :math:`E = \mathrm{Linear}(S)` viewed
    ``[KP, R, C]`` and the mixture weights :math:`w`, :math:`D_0[b, k] = \sum_r w[b, k, r] E[k, r]`.
    Entries are class-major: prototype p of class k is row ``k * P + p``.

    Args:
        num_classes: K >= 1.
        embed_dim: C.
        prototypes: P >= 1, entries per class.
        query_ratio: R >= 1, variants per entry.
        deepest_channels: channels of the deepest backbone map, or None for a static dictionary only.
    """

    def __init__(
        self,
        num_classes: int,
        embed_dim: int = 256,
        prototypes: int = 1,
        query_ratio: int = 4,
        deepest_channels: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("prototypes", prototypes), ("query_ratio", query_ratio)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        count = num_classes * prototypes
        self.query_ratio = query_ratio
        self.entries = nn.Parameter(torch.randn(count, embed_dim))
        self.expand: nn.Linear | None = None
        self.mixture: MixtureWeights | None = None
        if deepest_channels is not None:
            self.expand = nn.Linear(embed_dim, query_ratio * embed_dim)
            self.mixture = MixtureWeights(deepest_channels, embed_dim, count, query_ratio)

    def static(self, batch: int) -> Tensor:
        """The static entries for every image: ``[B, KP, C]`` (a view)."""
        return self.entries.unsqueeze(0).expand(batch, -1, -1)

    def dynamic(self, deepest: Tensor) -> Tensor:
        """``deepest [B, c, h, w]`` -> entries mixed for each image, ``[B, KP, C]`` in the parameters' dtype."""
        if self.mixture is None:
            raise ValueError("this dictionary is static; build it with deepest_channels to have a dynamic one")
        return self.mixed(self.mixture(deepest))

    def mixed(self, weights: Tensor) -> Tensor:
        """Mixture weights ``[B, KP, R]`` -> entries ``[B, KP, C]``."""
        if self.expand is None:
            raise ValueError("this dictionary is static; build it with deepest_channels to have a dynamic one")
        # The dictionary is tiny and everything hangs on it: it stays in the parameters' precision under autocast.
        with torch.autocast(weights.device.type, enabled=False):
            variants = self.expand(self.entries).unflatten(-1, (self.query_ratio, -1))
            return torch.einsum("bkr,krc->bkc", weights, variants)
