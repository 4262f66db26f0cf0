"""fuse_pyramid, as the neck that runs on it: four levels of feature maps to one pixel-major map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from d2ls_fast.benchmarks.cases.common import EMBED, Sizes, cases_for, random
from d2ls_fast.benchmarks.harness import Case
from d2ls_fast.nn.pyramid import PyramidNeck

CHANNELS = (96, 192, 384, 768)


def cases(sizes: Sizes) -> list[Case]:
    """The neck, forward and forward + backward; the reference concatenates, the folded form composes the products."""
    generator = sizes.generator()
    torch.manual_seed(0)
    neck = PyramidNeck(CHANNELS, EMBED).to(sizes.device, sizes.dtype)
    grids = [(sizes.size // stride) ** 2 for stride in (4, 8, 16, 32)]
    maps = [
        random(generator, sizes, sizes.batch, c, sizes.size // stride, sizes.size // stride)
        for c, stride in zip(CHANNELS, (4, 8, 16, 32), strict=True)
    ]

    def call(module: nn.Module, *features: Tensor) -> Sequence[Tensor]:
        return [module(features)]

    element = maps[0].element_size()
    read = sum(feature.numel() for feature in maps) * element
    written = sizes.batch * sizes.pixels * EMBED * element
    product = 2 * sizes.batch * EMBED * sum(n * c for n, c in zip(grids, CHANNELS, strict=True))
    return cases_for(
        "fuse_pyramid",
        sizes,
        neck,
        call,
        maps,
        forward_cost=(read + written, product),
        both_cost=(3 * read + 2 * written, 3 * product),
    )
