"""``ratio_contrast`` in Triton: the ratio over the dictionary and its gradient, one program an entry.

Every sum is formed by one program in a fixed order: results repeat bit for bit. C is a multiple of 16 from 16 to 1024.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton types the arguments of device code when it compiles a launch.
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from ._launch import on_device

BLOCK = 64


@triton.jit(do_not_specialize=["batch", "entries"])
def ratio_means(dictionary, mean, spread, batch, entries, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean over the batch of one entry, and the squared distances of its versions from it."""
    entry = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_C], dtype=tl.float32)
    for b in range(0, batch):
        total += tl.load(dictionary + (b * entries + entry) * C + c, mask=c < C, other=0.0)
    centre = total / batch
    distance = tl.zeros([BLOCK_C], dtype=tl.float32)
    for b in range(0, batch):
        d = tl.load(dictionary + (b * entries + entry) * C + c, mask=c < C, other=0.0) - centre
        distance += d * d
    tl.store(mean + entry * C + c, centre, mask=c < C)
    tl.store(spread + entry, tl.sum(distance, 0))


@triton.jit(do_not_specialize=["entries"])
def ratio_centre(mean, centre, spread, entries, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean of the entries' means in one block of channels, and their squared distances from it."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_C], dtype=tl.float32)
    for k in range(0, entries):
        total += tl.load(mean + tl.cast(k, tl.int64) * C + c, mask=c < C, other=0.0)
    middle = total / entries
    distance = tl.zeros([BLOCK_C], dtype=tl.float32)
    for k in range(0, entries):
        d = tl.load(mean + tl.cast(k, tl.int64) * C + c, mask=c < C, other=0.0) - middle
        distance += tl.where(c < C, d * d, 0.0)
    tl.store(centre + c, middle, mask=c < C)
    tl.store(spread + tl.program_id(0), tl.sum(distance, 0))


@triton.jit(do_not_specialize=["entries"])
def ratio_grad(dictionary, mean, centre, factors, grad, entries, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """factors[0] (D - its mean) - factors[1] (its mean - the centre), for one version of an entry."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    d = tl.load(dictionary + row * C + c, mask=c < C, other=0.0)
    m = tl.load(mean + row % entries * C + c, mask=c < C, other=0.0)
    middle = tl.load(centre + c, mask=c < C, other=0.0)
    tl.store(grad + row * C + c, tl.load(factors) * (d - m) - tl.load(factors + 1) * (m - middle), mask=c < C)


def _parts(dictionary: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means [K, C], their mean [C], the ratio's numerator and its denominator."""
    batch, entries, channels = dictionary.shape
    if dictionary.dtype != torch.float32:
        raise TypeError(f"ratio: dictionary must be float32, got {dictionary.dtype}")
    mean = torch.empty_like(dictionary[0])
    centre, spread = mean.new_empty(channels), mean.new_empty(entries)
    blocks = triton.cdiv(channels, BLOCK)
    apart = mean.new_empty(blocks)
    whole = configs.power_of_two(channels)
    with on_device(dictionary.device):
        ratio_means[(entries,)](dictionary, mean, spread, batch, entries, C=channels, BLOCK_C=whole)
        ratio_centre[(blocks,)](mean, centre, apart, entries, C=channels, BLOCK_C=BLOCK)
    intra = spread.sum() / (batch * entries)
    return mean, centre, intra, apart.sum() * (2.0 / (entries - 1)) + eps


def ratio_forward(dictionary: Tensor, eps: float) -> Tensor:
    """The ratio of [B, K, C] float32, a scalar; zero for one entry."""
    if dictionary.shape[1] < 2:
        return dictionary.new_zeros(())
    _, _, intra, inter = _parts(dictionary.contiguous(), eps)
    return intra / inter


def ratio_backward(dictionary: Tensor, grad: Tensor, eps: float) -> Tensor:
    """Gradient of ``ratio_forward`` for the scalar ``grad``."""
    dictionary = dictionary.contiguous()
    batch, entries, channels = dictionary.shape
    if entries < 2:
        return torch.zeros_like(dictionary)
    mean, centre, intra, inter = _parts(dictionary, eps)
    pull = grad * (2.0 / (batch * entries)) / inter
    push = grad * (4.0 / (batch * (entries - 1))) * intra / inter.square()
    result = torch.empty_like(dictionary)
    with on_device(dictionary.device):
        ratio_grad[(batch * entries,)](
            dictionary, mean, centre, torch.stack((pull, push)), result, entries,
            C=channels, BLOCK_C=configs.power_of_two(channels),
        )  # fmt: skip
    return result
