"""The neck: four backbone maps become one stride-4 map of C channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from d2ls_fast.backends import current as current_backend
from d2ls_fast.ops.fuse_pyramid import fuse_pyramid, upsample


class PyramidNeck(nn.Module):
    r"""Project every level to C channels, upsample to the finest, concatenate, fuse with a 1x1 convolution.

    .. math:: x_0 = W [\mathrm{up}(e_{n-1}), \dots, \mathrm{up}(e_0)] + b, \quad e_i = \mathrm{Linear}_i(f_i)

    Upsampling is bilinear with ``align_corners=False``. The back end ``reference`` computes just that. Otherwise the
    two products are composed, :math:`A_i = W_i \, \mathrm{Linear}_i`, which is exact because a 1x1 convolution commutes
    with the upsampling: :math:`x_0 = \sum_i \mathrm{up}(A_i f_i + W_i b_i)`, each product at its level's own size.

    Args:
        in_channels: channels of the levels, finest first; any number of them.
        embed_dim: C.
        bias: whether the fusing convolution has a bias (the release has none).
    """

    def __init__(self, in_channels: Sequence[int], embed_dim: int = 256, bias: bool = False) -> None:
        super().__init__()
        if not in_channels or min(in_channels) < 1:
            raise ValueError(
                f"in_channels must name at least one level with positive channels, got {list(in_channels)}"
            )
        self.projections = nn.ModuleList(nn.Linear(channels, embed_dim) for channels in in_channels)
        self.fuse = nn.Linear(len(in_channels) * embed_dim, embed_dim, bias=bias)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps ``[B, c_i, h_i, w_i]``, finest first, of any sizes -> ``[B, h_0 * w_0, C]``, pixel-major.

        Raises:
            ValueError: number of maps or their channels do not fit.
        """
        self._check(features)
        if current_backend() == "reference":
            return self._concatenated(features)
        return self._composed(features)

    def _concatenated(self, features: Sequence[Tensor]) -> Tensor:
        size = features[0].shape[-2:]
        levels = []
        for projection, feature in zip(self.projections, features, strict=True):
            level = projection(feature.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            levels.append(upsample(level, size))
        # The release concatenates coarse to fine.
        return self.fuse(torch.cat(levels[::-1], dim=1).flatten(2).transpose(1, 2))

    def _composed(self, features: Sequence[Tensor]) -> Tensor:
        parts = self.fuse.weight.chunk(len(features), dim=1)[::-1]
        weights, biases = [], []
        # In the parameters' own precision, under autocast too.
        with torch.autocast(features[0].device.type, enabled=False):
            for index, part in enumerate(parts):
                projection = cast(nn.Linear, self.projections[index])
                weights.append(part @ projection.weight)
                biases.append(part @ projection.bias)
            if self.fuse.bias is not None:
                biases[0] = biases[0] + self.fuse.bias
        return fuse_pyramid(features, weights, biases)

    def _check(self, features: Sequence[Tensor]) -> None:
        if len(features) != len(self.projections):
            raise ValueError(f"expected {len(self.projections)} feature maps, finest first, got {len(features)}")
        for index, (projection, feature) in enumerate(zip(self.projections, features, strict=True)):
            if feature.dim() != 4 or feature.shape[1] != projection.in_features:
                raise ValueError(
                    f"feature map {index} must be [B, {projection.in_features}, h, w], got {tuple(feature.shape)}"
                )
