"""Which form of the interaction is cheaper: projections folded onto the dictionary, or projected pixels."""

from __future__ import annotations

from typing import NamedTuple


class Overhead(NamedTuple):
    """What a pixel costs beside its matrix products, in multiply-adds that take as long."""

    folded_score: int
    """Softmax of one score in the folded form; there are H * K."""
    projected_score: int
    """The same in the projected form."""
    projected_channel: int
    """Moving one channel through the projections."""


# CPU: fitted to the compiled kernels by benchmarks/projected_cost.py (C = 64..1024, H = 4..16, K = 7..150, float32,
# AVX-512); benchmarks/results/cpu-projected.md shows the interaction on either side of the crossover.
# Elsewhere: not measured. The projected form is PyTorch's flash attention, which writes the projected pixels to memory
# and reads them back: about 4 C elements more a pixel and direction, each as long as some 180 multiply-adds (two bytes
# at 4.3 TB/s against 790 TFLOP/s).
_OVERHEAD = {"cpu": Overhead(125, 55, 85)}
_OVERHEAD_ELSEWHERE = Overhead(125, 55, 800)


def projecting_pays(channels: int, width: int, num_heads: int, entries: int, device: str) -> bool:
    r"""Whether one direction of the interaction is cheaper with projected pixels than with folded projections.

    Multiply-adds of a pixel, with the overheads :math:`s, s', c` of the device:

    .. math::
        \text{folded: } H K (2 C + s), \qquad \text{projected: } 2 C D + 2 K D + H K s' + C c

    Folding grows with the product of heads, entries and channels, projecting has a fixed part: it pays from some number
    of entries on (20 for C = 256, D = 128, H = 8 on a CPU).

    Args:
        channels: C.
        width: D, all heads together.
        num_heads: H.
        entries: K, dictionary entries.
        device: type of the device, such as ``cpu``.
    """
    overhead = _OVERHEAD.get(device, _OVERHEAD_ELSEWHERE)
    rows = num_heads * entries
    folded = rows * (2 * channels + overhead.folded_score)
    fixed = channels * (2 * width + overhead.projected_channel)
    return fixed + 2 * entries * width + rows * overhead.projected_score < folded
