"""The dynamic dictionary: one product for all images instead of a grouped convolution for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from d2ls_fast.models.patching.fast import Fast
from d2ls_fast.models.patching.structure import is_linear, part


class FastDictionary(Fast):
    r"""``token``: mixture weights in, dynamic and static dictionary out.

    .. math:: D_0[b, k] = \sum_r w[b, k, r] E[k, r]

    with E the ``token_mlp`` of ``basic_queries``.
    """

    switch = "dictionary"

    @classmethod
    def find(cls, module: nn.Module) -> str | bool:
        queries, expand = part(module, "basic_queries"), part(module, "token_mlp")
        if queries is None or expand is None:
            return False
        if not isinstance(queries, nn.Embedding) or not is_linear(expand):
            return "basic_queries is no Embedding, or token_mlp no Linear with a bias"
        channels = queries.embedding_dim
        if expand.in_features != channels or expand.out_features % channels:
            return f"token_mlp is no map from {channels} to a multiple of {channels}"
        return True

    @classmethod
    def example(cls, module: nn.Module, random: Callable[..., Tensor]) -> Sequence[Any]:
        queries, expand = cast(nn.Embedding, module.basic_queries), cast(nn.Linear, module.token_mlp)
        ratio = expand.out_features // queries.embedding_dim
        return (random(2, queries.num_embeddings, ratio),)

    def forward(self, query_weights: Tensor) -> Any:
        """``[B, K, R]`` -> dynamic and static entries, each ``[B, K, C]``."""
        if not self.as_found():
            return super().forward(query_weights)
        static = cast(nn.Embedding, self.basic_queries).weight
        entries = cast(nn.Linear, self.token_mlp)(static).unflatten(-1, (-1, static.shape[1]))
        dynamic = torch.einsum("bkr,krc->bkc", query_weights.to(entries.dtype), entries)
        return dynamic, static.expand(query_weights.shape[0], -1, -1)
