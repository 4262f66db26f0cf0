"""The kernels of attend, and the two that add up the partial results of all operators."""

from __future__ import annotations

from collections.abc import Iterator

from d2ls_fast.benchmarks.triton_resources.compile import (
    Configuration,
    Identity,
    block_name,
    configured,
    default_launch,
    element,
    precision,
)
from d2ls_fast.kernels import _attend_backward, _attend_forward, _tiles, configs

ROWS = 64
FUNCTIONS = {
    "forward": _attend_forward.attend_chunk,
    "grad_pixels": _attend_backward.attend_grad_pixels,
    "grad_query": _attend_backward.attend_grad_query,
}
OF_PIXELS = ("pixels", "pe", "query", "grad", "grad_pixels", "grad_pe")
# The pixels' gradient: with all query rows in one block or not, with the encoding's gradient or not.
GRAD_PIXELS = {
    "one block": {"ONE_BLOCK": True, "NEED_PE": False},
    "one block, pe": {"ONE_BLOCK": True, "NEED_PE": True},
    "blocks": {"ONE_BLOCK": False, "NEED_PE": False},
    "blocks, pe": {"ONE_BLOCK": False, "NEED_PE": True},
}


def configurations(architecture: str) -> Iterator[Configuration]:
    for (kernel, kind), tile in configs.ARCHITECTURES[architecture].tiles.items():
        channels = 512 if kind == "wide" else 256
        blocks = configs.block_sizes(tile, channels, ROWS)
        types = dict.fromkeys(OF_PIXELS, "*" + element(kind))
        variants = GRAD_PIXELS if kernel == "grad_pixels" else {"": {}}
        for variant, flags in variants.items():
            identity = Identity(
                architecture, f"attend_{kernel}", kind, channels, variant, block_name(*blocks.values()),
                tile.num_warps, tile.num_stages,
            )  # fmt: skip
            constants = {"C": channels, "PE_SHARED": True, **blocks, **flags, "PRECISION": precision(kind)}
            yield configured(FUNCTIONS[kernel], identity, constants, types, hot=kind == "half")
    yield from _partial_results(architecture)


def _partial_results(architecture: str) -> Iterator[Configuration]:
    for kind, channels in (("half", 256), ("wide", 512)):
        constants = {"C": channels, "BLOCK_C": channels, "BLOCK_PARTS": 4}
        identity = Identity(
            architecture, "merge_chunks", kind, channels, "", block_name(4, channels), *default_launch(architecture)
        )
        yield configured(_attend_forward.merge_chunks, identity, constants, {}, hot=True)
    for kind in ("half", "ieee"):
        identity = Identity(architecture, "sum_parts", kind, 256, "", "1024", *default_launch(architecture))
        yield configured(_tiles.sum_parts, identity, {"BLOCK": 1024}, {"out": "*" + element(kind)}, hot=True)
