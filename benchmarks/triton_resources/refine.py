"""The kernels of refine and refine_attend, for 8 heads of 7 entries; the hot kind with 150 entries as well."""

from __future__ import annotations

from collections.abc import Iterator

from d2ls_fast.benchmarks.triton_resources.compile import (
    Configuration,
    Identity,
    block_name,
    configured,
    element,
    precision,
)
from d2ls_fast.kernels import _refine_backward, _refine_backward_rows, _refine_forward, configs

QUERIES, HEADS, ENTRIES, MANY_ENTRIES = 64, 8, 7, 150
FUNCTIONS = {
    "refine": _refine_forward.refine_chunk,
    "refine_attend": _refine_forward.refine_chunk,
    "refine_grad_total": _refine_backward.refine_grad_total,
    "refine_attend_grad_total": _refine_backward.refine_grad_total,
    "refine_grad_rows": _refine_backward_rows.refine_grad_rows,
    "refine_grad_pixels": _refine_backward_rows.refine_grad_pixels,
}
OF_PIXELS = (
    "pixels", "pe", "key", "value", "query", "refined", "grad", "grad_refined", "grad_total", "grad_pixels", "grad_pe",
)  # fmt: skip
WITH_ENCODING = ("refine_attend_grad_total", "refine_grad_rows", "refine_grad_pixels")


def configurations(architecture: str) -> Iterator[Configuration]:
    for kernel, kind in configs.ARCHITECTURES[architecture].refine:
        yield _configuration(architecture, kernel, kind, ENTRIES)
        if kind == "half":
            yield _configuration(architecture, kernel, kind, MANY_ENTRIES)
        if kernel in WITH_ENCODING:
            yield _configuration(architecture, kernel, kind, ENTRIES, need_pe=True)


def _configuration(architecture: str, kernel: str, kind: str, entries: int, need_pe: bool = False) -> Configuration:
    channels = 512 if kind == "wide" else 256
    tile = configs.ARCHITECTURES[architecture].refine_tile(kernel, kind, entries)
    assert tile is not None, (architecture, kernel, kind)
    blocks = configs.refine_blocks(tile, channels, HEADS, entries)
    one_block = HEADS * blocks["PADDED"] <= blocks["BLOCK_J"]
    constants = {
        "C": channels, "PE_SHARED": True, "ATTEND": kernel in configs.FUSED_KERNELS, "ONE_BLOCK": one_block,
        "WITH_PIXELS": one_block, "NEED_PE": need_pe, "ADD_PE": False, "BLOCK_Q": QUERIES, **blocks,
        "PRECISION": precision(kind),
    }  # fmt: skip
    variant = f"{'one block' if one_block else 'blocks'}{', pe' if need_pe else ''}"
    if blocks["PADDED"] > blocks["BLOCK_J"]:
        variant = "heads in blocks"
    block = block_name(blocks["BLOCK_J"], blocks["BLOCK_N"], blocks["BLOCK_C"])
    identity = Identity(architecture, kernel, kind, channels, variant, block, tile.num_warps, tile.num_stages)
    types = dict.fromkeys(OF_PIXELS, "*" + element(kind)) | {"eps": "fp32"}
    return configured(FUNCTIONS[kernel], identity, constants, types, hot=kind == "half")
