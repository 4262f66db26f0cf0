"""Multi-head cross-attention between the dictionary and the pixels, and its parameters as the operators take them."""

from __future__ import annotations

import math

from torch import Tensor, nn

from d2ls_fast.ops.dictionary_step import Entries, Look, Update


class Projections:
    """The projections of a multi-head cross-attention, as the operators take them.

    :meth:`update`, :meth:`entries` and :meth:`look` hand them to ``dictionary_step``, which moves those of the N pixels
    onto the K dictionary entries.

    Attributes:
        num_heads: H.
        scale: ``1 / sqrt(d)``, d the width of a head.
        q_proj, k_proj, v_proj: C -> H * d.
        out_proj: H * d -> C.
    """

    num_heads: int
    scale: float
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear

    def update(self, norm: nn.LayerNorm) -> Update:
        """What dictionary_step takes to turn attend's context into the dictionary normalised by ``norm``."""
        values, out = self.v_proj, self.out_proj
        return Update(values.weight, values.bias, out.weight, out.bias, norm.weight, norm.bias)

    def entries(self) -> Entries:
        """What dictionary_step takes to fold the dictionary for pixels <- dictionary."""
        queries, keys, values = self.q_proj, self.k_proj, self.v_proj
        return Entries(
            queries.weight, queries.bias, keys.weight, keys.bias, values.weight, values.bias, self.out_proj.weight
        )

    def look(self) -> Look:
        """What dictionary_step takes to fold the dictionary for dictionary <- pixels."""
        return Look(self.q_proj.weight, self.q_proj.bias, self.k_proj.weight, self.k_proj.bias)


class CrossAttention(nn.Module, Projections):
    r"""Cross-attention with projections to a narrower width.

    .. math:: \mathrm{Attn}(q, k, v) = W_o \, [\mathrm{softmax}(q_h k_h^\top / \sqrt d) \, v_h]_h + b_o

    with q, k, v projected from C to ``C / downsample_rate`` (with bias), split into H heads of width d.

    :meth:`forward` is the definition. Moving the projections of the N pixels onto the K dictionary entries is exact
    algebra: q, k and v of the pixels are never formed, and the operators ``attend`` and ``refine`` do the rest.

    Args:
        embed_dim: C.
        num_heads: H, must divide ``C / downsample_rate``.
        downsample_rate: factor by which attention is narrower than C.
    """

    def __init__(self, embed_dim: int, num_heads: int, downsample_rate: int = 2) -> None:
        super().__init__()
        if downsample_rate < 1 or embed_dim % downsample_rate:
            raise ValueError(f"downsample_rate must divide embed_dim {embed_dim}, got {downsample_rate}")
        inner = embed_dim // downsample_rate
        if num_heads < 1 or inner % num_heads:
            raise ValueError(f"num_heads must divide the attention width {inner}, got {num_heads}")
        self.num_heads = num_heads
        self.scale = 1.0 / math.sqrt(inner // num_heads)
        self.q_proj = nn.Linear(embed_dim, inner)
        self.k_proj = nn.Linear(embed_dim, inner)
        self.v_proj = nn.Linear(embed_dim, inner)
        self.out_proj = nn.Linear(inner, embed_dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The definition: ``query [B, Q, C]``, ``key`` and ``value [B, M, C]`` -> ``[B, Q, C]``, softmax over M."""
        q, k, v = (self._heads(p(t)) for p, t in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value)))
        weights = ((q @ k.transpose(-1, -2)) * self.scale).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))

    def _heads(self, tokens: Tensor) -> Tensor:
        """``[B, M, H * d]`` -> ``[B, H, M, d]``."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
