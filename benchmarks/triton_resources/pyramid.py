"""The kernels of fuse_pyramid, with three coarse levels."""

from __future__ import annotations

from collections.abc import Iterator

from d2ls_fast.benchmarks.triton_resources.compile import Configuration, Identity, block_name, configured, element
from d2ls_fast.kernels import _fuse_pyramid, configs

CHANNELS, LEVELS = 256, 3
FUNCTIONS = {
    "pyramid_sum": _fuse_pyramid.pyramid_sum,
    "pyramid_gather": _fuse_pyramid.pyramid_gather,
}
OF_PIXELS = ("fused", "product_1", "product_2", "product_3", "grad", "grad_product")


def configurations(architecture: str) -> Iterator[Configuration]:
    for (kernel, kind), tile in configs.ARCHITECTURES[architecture].pyramid.items():
        constants = {"C": CHANNELS, "LEVELS": LEVELS, "BLOCK_N": tile.block_n, "BLOCK_C": min(tile.block_c, CHANNELS)}
        block = block_name(tile.block_n, tile.block_c)
        identity = Identity(architecture, kernel, kind, CHANNELS, "", block, tile.num_warps, tile.num_stages)
        types = dict.fromkeys(OF_PIXELS, "*" + element(kind))
        yield configured(FUNCTIONS[kernel], identity, constants, types, hot=kind == "half")
