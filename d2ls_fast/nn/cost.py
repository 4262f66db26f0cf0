"""Which form of the interaction is cheaper: projections folded onto the dictionary, or projected pixels."""

from __future__ import annotations

from typing import NamedTuple

import torch

from d2ls_fast import _extension


class Costs(NamedTuple):
    """What a pixel costs, in multiply-adds of the projected form that take as long."""

    folded_product: float
    """A multiply-add of the folded form."""
    folded_score: int
    """Softmax of one score in the folded form; there are H * K."""
    projected_score: int
    """The same in the projected form."""
    projected_channel: int
    """Moving one channel through the projections."""


# CPU: fitted to the compiled kernels by benchmarks/projected_cost.py (C = 64..1024, H = 4..16, K = 7..150, float32,
# AVX-512) and rounded; benchmarks/results/cpu-projected.md shows the interaction on either side of the crossover.
_CPU = Costs(1.0, 125, 55, 85)
# Folded products of bfloat16 in pairs take half as long: with C = 256, D = 128, H = 8 both forms met at K = 34
# (forward) and 40 (forward + backward). The projected kernels widen bfloat16 to float32.
_CPU_BF16_PRODUCTS = _CPU._replace(folded_product=0.5)
# Not measured. The projected form is PyTorch's flash attention, which writes the projected pixels to memory and reads
# them back: about 4 C elements more a pixel and direction, each as long as some 180 multiply-adds (two bytes at 4.3
# TB/s against 790 TFLOP/s).
_ELSEWHERE = Costs(1.0, 125, 55, 800)


def costs(device: str, dtype: torch.dtype) -> Costs:
    """The constants for pixels of a dtype on a type of device, such as ``cpu``."""
    if device != "cpu":
        return _ELSEWHERE
    return _CPU_BF16_PRODUCTS if dtype is torch.bfloat16 and _extension.BF16_PRODUCTS else _CPU


def projecting_pays(channels: int, width: int, num_heads: int, entries: int, cost: Costs) -> bool:
    r"""Whether one direction of the interaction is cheaper with projected pixels than with folded projections.

    Multiply-adds of a pixel, with the constants :math:`r, s, s', c` of ``cost``:

    .. math::
        \text{folded: } H K (2 r C + s), \qquad \text{projected: } 2 C D + 2 K D + H K s' + C c

    Folding grows with the product of heads, entries and channels, projecting has a fixed part: it pays from some number
    of entries on (20 for C = 256, D = 128, H = 8 in float32 on a CPU).

    Args:
        channels: C.
        width: D, all heads together.
        num_heads: H.
        entries: K, dictionary entries.
        cost: of the device and dtype, from :func:`costs`.
    """
    rows = num_heads * entries
    folded = rows * (2 * channels * cost.folded_product + cost.folded_score)
    fixed = channels * (2 * width + cost.projected_channel)
    return fixed + 2 * entries * width + rows * cost.projected_score < folded
