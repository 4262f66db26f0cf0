"""Cross-attention between dictionary and pixels in the projected form, for many entries; see ``cost.py``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d2ls_fast.backends import current as current_backend
from d2ls_fast.nn.cost import costs, projecting_pays
from d2ls_fast.nn.cross_attention import Projections
from d2ls_fast.ops import attend_projected, refine_projected


def pays(attention: Projections, pixels: Tensor, entries: int) -> bool:
    """Whether this form is the cheaper one for ``entries`` dictionary entries that meet each of the pixels."""
    if current_backend() == "triton":  # asked for by name, and it has kernels of the folded form only
        return False
    device = pixels.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else pixels.dtype
    sizes = (pixels.shape[2], attention.q_proj.out_features, attention.num_heads, entries)
    return projecting_pays(*sizes, costs(device, dtype))


def look(attention: Projections, query: Tensor, pixels: Tensor, pixel_pe: Tensor) -> Tensor:
    """dictionary <- pixels: ``Attn(query, pixels + pixel_pe, pixels)``, ``[G * B, K, C]`` in the dtype of ``query``.

    Args:
        attention: whose projections are used.
        query: the dictionary with its positional term, ``[G * B, K, C]``.
        pixels, pixel_pe: as :func:`~d2ls_fast.ops.attend_projected.attend_projected` takes them.
    """
    keys, values = attention.k_proj, attention.v_proj
    projected = _linear(attention.q_proj, query, pixels) * attention.scale
    mixed = attend_projected(pixels, pixel_pe, projected, keys.weight, values.weight, attention.num_heads)
    # The weights of the pixels sum to one, so the values' bias comes after. The keys' bias has no influence, but DDP
    # wants a gradient for every parameter: a zero one.
    mixed = mixed + (values.bias + 0.0 * keys.bias)
    return _linear(attention.out_proj, mixed, pixels).to(query.dtype)


def update(
    attention: Projections,
    norm: nn.LayerNorm,
    pixels: Tensor,
    pixel_pe: Tensor,
    key: Tensor,
    value: Tensor,
) -> Tensor:
    """pixels <- dictionary: ``norm(pixels + Attn(pixels + pixel_pe, key, value))``, ``[G * B, N, C]``."""
    return refine_projected(
        pixels,
        pixel_pe,
        _linear(attention.k_proj, key, pixels) * attention.scale,
        _linear(attention.v_proj, value, pixels),
        attention.q_proj.weight,
        attention.q_proj.bias,
        attention.out_proj.weight,
        attention.out_proj.bias,
        norm.weight,
        norm.bias,
        attention.num_heads,
        norm.eps,
    )


def _linear(linear: nn.Linear, tokens: Tensor, pixels: Tensor) -> Tensor:
    """A projection of the dictionary in the precision of the kernels' sums: float32, float64 for float64 pixels."""
    dtype = torch.promote_types(pixels.dtype, torch.float32)
    with torch.autocast(tokens.device.type, enabled=False):
        return nn.functional.linear(tokens.to(dtype), linear.weight.to(dtype), linear.bias.to(dtype))
