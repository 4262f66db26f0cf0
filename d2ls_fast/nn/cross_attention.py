"""Multi-head cross-attention between the dictionary and the pixels, as defined and with its projections folded."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from d2ls_fast.backends import current as current_backend
from d2ls_fast.ops.attend import attend


class CrossAttention(nn.Module):
    r"""Cross-attention with projections to a narrower width.

    .. math:: \mathrm{Attn}(q, k, v) = W_o \, [\mathrm{softmax}(q_h k_h^\top / \sqrt d) \, v_h]_h + b_o

    with q, k, v projected from C to ``C / downsample_rate`` (with bias), split into H heads of width d.

    :meth:`forward` is the definition. :meth:`folded_query`, :meth:`from_context` and :meth:`folded_entries` move every
    projection of the N pixels onto the K dictionary entries, which is exact algebra: q, k and v of the pixels are never
    formed, and the operators ``attend`` and ``refine`` do the rest.

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

    def to_dictionary(self, query: Tensor, pixels: Tensor, pixel_pe: Tensor) -> Tensor:
        """dictionary <- pixels: ``Attn(query, pixels + pixel_pe, pixels)``, softmax over the N pixels.

        Args:
            query: dictionary with its positional term, ``[B, K, C]``.
            pixels: ``[B, N, C]``.
            pixel_pe: ``[N, C]`` or ``[B, N, C]``.

        Returns:
            the update of the dictionary, ``[B, K, C]`` in the dtype of ``query``.
        """
        if current_backend() == "reference":
            return self(query, pixels + pixel_pe.to(pixels.dtype), pixels).to(query.dtype)
        context, _ = attend(pixels, pixel_pe.to(pixels.dtype), self.folded_query(query, pixels.dtype))
        return self.from_context(context, query.dtype)

    def folded_query(self, query: Tensor, dtype: torch.dtype) -> Tensor:
        r"""The rows :math:`W_{K,h}^\top q_{hk} / \sqrt d` that attend takes, ``[B, H * K, C]`` in ``dtype``.

        :math:`q_{hk} \cdot (W_{K,h} y + b) / \sqrt d` is such a row times y, plus a constant that the softmax over the
        pixels removes.
        """
        with torch.autocast(query.device.type, enabled=False):
            fold = _folding_dtype(dtype, query.device)
            q = self._heads(_project(self.q_proj, query, fold)) * self.scale
            return torch.einsum("bhkd,hdc->bhkc", q, self._rows(self.k_proj, fold)).flatten(1, 2).to(dtype)

    def from_context(self, context: Tensor, dtype: torch.dtype) -> Tensor:
        r"""The attention's result from attend's context ``[B, H * K, C]``: ``[B, K, C]`` in ``dtype``.

        :math:`\sum_n a_n (W_{V,h} x_n + b) = W_{V,h} \sum_n a_n x_n + b`, because the weights sum to one.
        """
        with torch.autocast(context.device.type, enabled=False):
            fold = _folding_dtype(dtype, context.device)
            mean = context.to(fold).unflatten(1, (self.num_heads, -1))
            value = torch.einsum("bhkc,hdc->bkhd", mean, self._rows(self.v_proj, fold)).flatten(2)
            # The key bias has no influence, but DDP wants a gradient for every parameter: a zero one.
            bias = self.v_proj.bias + 0.0 * self.k_proj.bias
            return _project(self.out_proj, value + bias, fold).to(dtype)

    def folded_entries(self, key: Tensor, value: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        r"""What refine takes for pixels <- dictionary: key, key bias and value rows.

        Key :math:`W_{Q,h}^\top k_{hk} / \sqrt d` and value :math:`W_{O,h} v_{hk}`, ``[B, H * K, C]`` in ``dtype``; bias
        :math:`b_{Q,h} \cdot k_{hk} / \sqrt d`, ``[B, H * K]``.
        """
        with torch.autocast(key.device.type, enabled=False):
            fold = _folding_dtype(dtype, key.device)
            k = self._heads(_project(self.k_proj, key, fold)) * self.scale
            v = self._heads(_project(self.v_proj, value, fold))
            bias = self.q_proj.bias.to(fold).unflatten(0, (self.num_heads, -1))
            folded_key = torch.einsum("bhkd,hdc->bhkc", k, self._rows(self.q_proj, fold)).flatten(1, 2)
            key_bias = torch.einsum("bhkd,hd->bhk", k, bias).flatten(1)
            out = self.out_proj.weight.to(fold).unflatten(1, (self.num_heads, -1))
            folded_value = torch.einsum("bhkd,chd->bhkc", v, out).flatten(1, 2)
            return folded_key.to(dtype), key_bias, folded_value.to(dtype)

    def _heads(self, tokens: Tensor) -> Tensor:
        """``[B, M, H * d]`` -> ``[B, H, M, d]``."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _rows(self, projection: nn.Linear, dtype: torch.dtype) -> Tensor:
        """A projection's weight ``[H * d, C]`` by head, ``[H, d, C]``."""
        return projection.weight.to(dtype).unflatten(0, (self.num_heads, -1))


def _folding_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """One precision above the pixels': what is folded is rounded only once, when it meets them.

    Two chained products in float32 would double the error of the scores, and the dictionary is so small that float64
    costs nothing.
    """
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) or device.type == "mps" else torch.float64


def _project(linear: nn.Linear, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    return nn.functional.linear(tokens.to(dtype), linear.weight.to(dtype), linear.bias.to(dtype))
