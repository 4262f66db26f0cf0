"""Random-Fourier positional encoding of the pixel grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RandomFourierPositions(nn.Module):
    r"""Encode pixel centres with fixed random frequencies.

    With :math:`u = ((j + .5)/w, (i + .5)/h)` in (x, y) order and the buffer :math:`G \in R^{2 \times C/2}`:

    .. math:: a = 2\pi (2u - 1) G, \quad \mathrm{pe} = [\sin a, \cos a]

    The encoding depends on the grid only, not on the image or the batch.

    Args:
        embed_dim: C, even.
        scale: standard deviation of the frequencies.

    Source: D2LS (arXiv 2503.06683), section on the decoder; Tancik et al. 2020 for the encoding.
    """

    frequencies: Tensor

    def __init__(self, embed_dim: int, scale: float = 1.0) -> None:
        super().__init__()
        if embed_dim < 2 or embed_dim % 2:
            raise ValueError(f"embed_dim must be a positive even number, got {embed_dim}")
        self.register_buffer("frequencies", scale * torch.randn(2, embed_dim // 2))

    def forward(self, height: int, width: int, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
        """The encoding of a ``height x width`` grid, ``[height * width, C]`` pixel-major, float32 (float64 as G).

        ``rows`` and ``columns`` take that part of the grid only.
        """
        dtype = torch.promote_types(self.frequencies.dtype, torch.float32)
        # sin(a + b) and cos(a + b) from row and column tables: (h + w) * C sines instead of h * w * C. So float64 is
        # cheap; angles of tens of radians formed in float32 would be the largest single error of a float32 forward.
        exact = torch.float32 if self.frequencies.device.type == "mps" else torch.float64
        g = self.frequencies.to(exact)
        column = _centres(width, g)[columns].unsqueeze(1) * (2 * math.pi * g[0])  # [w, C/2]
        row = _centres(height, g)[rows].unsqueeze(1) * (2 * math.pi * g[1])  # [h, C/2]
        sin_r, cos_r = row.sin().to(dtype), row.cos().to(dtype)
        sin_c, cos_c = column.sin().to(dtype), column.cos().to(dtype)
        # Both halves at once, so that the table is the only tensor of its size:
        # [sin_r, cos_r] [cos_c, cos_c] + [cos_r, -sin_r] [sin_c, sin_c]
        table = torch.cat((sin_r, cos_r), -1).unsqueeze(1) * torch.cat((cos_c, cos_c), -1)
        table.addcmul_(torch.cat((cos_r, -sin_r), -1).unsqueeze(1), torch.cat((sin_c, sin_c), -1))
        return table.flatten(0, 1)


def _centres(size: int, like: Tensor) -> Tensor:
    """Pixel centres on (-1, 1)."""
    return (torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) * (2.0 / size) - 1.0
