"""refine: every pixel looks at the dictionary entries (pixels <- dictionary), residual and LayerNorm included."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2ls_fast.backends import select
from d2ls_fast.ops._library import operator_of, with_autocast
from d2ls_fast.ops.attend import check_pixels, check_rows


def refine(
    pixels: Tensor,
    pixel_pe: Tensor,
    key: Tensor,
    key_bias: Tensor,
    value: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    num_heads: int,
    eps: float = 1e-5,
) -> Tensor:
    r"""Pixels updated by the dictionary, or by each of several dictionaries.

    .. math::
        z_{nhk} = \kappa_{hk} \cdot (x_n + p_n) + c_{hk}, \quad
        x'_n = \mathrm{LN}\Big(x_n + \sum_{h,k} \mathrm{softmax}_k(z_{nhk}) \, \nu_{hk} + b\Big)

    This is the pixel side of a multi-head cross-attention with its query projection folded into the key and its output
    projection into the value: :math:`\kappa_{hk} = W_{Q,h}^\top k_{hk} / \sqrt d`,
    :math:`c_{hk} = b_{Q,h} \cdot k_{hk} / \sqrt d`, :math:`\nu_{hk} = W_{O,h} v_{hk}`.

    Args:
        pixels: x, ``[B, N, C]``, float32, bfloat16, float16 (kernels) or float64 (plain PyTorch).
        pixel_pe: p, ``[N, C]`` or ``[B, N, C]``; same dtype.
        key: kappa, ``[G * B, J, C]`` with J = num_heads * K, rows head-major ``h * K + k``; same dtype. G >= 1
            dictionaries meet the same pixels: key ``g * B + b`` belongs to image b.
        key_bias: c, ``[G * B, J]``, float32 (float64 for float64 pixels), as are the three that follow the value.
        value: nu, ``[G * B, J, C]``; the dtype of pixels.
        out_bias: b, ``[C]``.
        norm_weight, norm_bias: of the LayerNorm, ``[C]``.
        num_heads: H; the softmax runs over the K entries of each head.
        eps: added to the variance.

    Returns:
        the updated pixels, ``[G * B, N, C]`` in the dtype of pixels. Softmax, statistics and sums are float32
        (float64).

    Raises:
        ValueError: shapes, dtypes or devices do not fit; the message names the argument.
        BackendError: a forced back end cannot serve the call.

    Differentiable once in every tensor; nothing of size ``N x J`` is stored. Bitwise repeatable.

    Source: the D2LS interaction (arXiv 2503.06683), with the projections moved to the dictionary side.
    """
    pixels, pixel_pe, key, value = with_autocast((pixels, pixel_pe, key, value))
    key_bias, out_bias, norm_weight, norm_bias = as_vectors(pixels, key_bias, out_bias, norm_weight, norm_bias)
    arguments = (pixels, pixel_pe, key, key_bias, value, out_bias, norm_weight, norm_bias)
    check_refine(*arguments, num_heads)
    name = select("refine", pixels, key.shape[1] // num_heads)
    if name in ("reference", "torch"):
        return refine_definition(*arguments, num_heads, eps)
    refined: Tensor = operator_of("refine", name)(*arguments, num_heads, eps)
    return refined


def refine_definition(
    pixels: Tensor,
    pixel_pe: Tensor,
    key: Tensor,
    key_bias: Tensor,
    value: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    num_heads: int,
    eps: float,
) -> Tensor:
    """The operator in plain PyTorch: products in the dtype of pixels, softmax and norm in float32 (float64)."""
    pixels, pixel_pe = repeated(pixels, key), repeated(pixel_pe, key)
    accumulate = torch.promote_types(pixels.dtype, torch.float32)
    scores = ((pixels + pixel_pe) @ key.transpose(-1, -2)).to(accumulate) + key_bias.unsqueeze(1)
    weights = scores.unflatten(-1, (num_heads, -1)).softmax(-1).flatten(2)
    update = weights.to(pixels.dtype) @ value + out_bias.to(pixels.dtype)
    total = (pixels + update).to(accumulate)
    return F.layer_norm(total, total.shape[-1:], norm_weight, norm_bias, eps).to(pixels.dtype)


def repeated(pixels: Tensor, dictionary: Tensor) -> Tensor:
    """Pixels or their encodings ``[B, N, C]`` for the ``G * B`` of dictionary; an encoding ``[N, C]`` fits as it is."""
    if pixels.dim() == 2 or pixels.shape[0] == dictionary.shape[0]:
        return pixels
    return pixels.repeat(dictionary.shape[0] // pixels.shape[0], 1, 1)


def as_vectors(pixels: Tensor, *vectors: Tensor) -> tuple[Tensor, ...]:
    """Bias and norm vectors in the precision of the sums: float32, or float64 for float64 pixels."""
    dtype = torch.promote_types(pixels.dtype, torch.float32)
    return tuple(v.to(dtype) for v in vectors)


def check_refine(
    pixels: Tensor,
    pixel_pe: Tensor,
    key: Tensor,
    key_bias: Tensor,
    value: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    num_heads: int,
) -> None:
    """Raise ``ValueError`` unless the arguments fit each other; see :func:`refine`."""
    check_pixels("refine", pixels, pixel_pe)
    check_rows("refine", "key", key, pixels)
    check_rows("refine", "value", value, pixels)
    count, j, c = key.shape
    if value.shape != key.shape:
        raise ValueError(f"refine: value must be [{count}, {j}, {c}] as key is, got {tuple(value.shape)}")
    if num_heads < 1 or j % num_heads:
        raise ValueError(f"refine: num_heads must divide the {j} rows of key, got {num_heads}")
    vectors = {"key_bias": (key_bias, (count, j)), "out_bias": (out_bias, (c,))}
    vectors |= {"norm_weight": (norm_weight, (c,)), "norm_bias": (norm_bias, (c,))}
    for name, (tensor, shape) in vectors.items():
        if tensor.shape != shape:
            raise ValueError(f"refine: {name} must be {list(shape)}, got {tuple(tensor.shape)}")
        if tensor.device != pixels.device:
            raise ValueError(f"refine: {name} must be on the device of pixels, {pixels.device}, got {tensor.device}")
