"""The kernels of the contrastive losses, for 64 entries (one block, hot) and, where that is compiled apart, for 256."""

from __future__ import annotations

from collections.abc import Iterator

from d2ls_fast.benchmarks.triton_resources.compile import (
    Configuration,
    Identity,
    block_name,
    configured,
    default_launch,
    element,
)
from d2ls_fast.kernels import _nce, configs, nce, ratio

CHANNELS, ROWS, MANY_ROWS = 256, 64, 256
NCE_FUNCTIONS = {
    "nce_rows": _nce.nce_rows,
    "nce_columns": _nce.nce_columns,
    "nce_grad_pixels": _nce.nce_grad_pixels,
    "nce_grad_entries": _nce.nce_grad_entries,
}
RATIO_FUNCTIONS = {
    "ratio_means": ratio.ratio_means,
    "ratio_centre": ratio.ratio_centre,
    "ratio_grad": ratio.ratio_grad,
}


def configurations(architecture: str) -> Iterator[Configuration]:
    for kernel in NCE_FUNCTIONS:
        for kind in ("half", "tf32", "ieee"):
            yield _nce_configuration(architecture, kernel, kind, ROWS)
            if kernel == "nce_grad_pixels":
                yield _nce_configuration(architecture, kernel, kind, MANY_ROWS)
    launch = default_launch(architecture)
    block = block_name(nce.CLASS_BLOCK, nce.CLASS_PIXELS)
    identity = Identity(architecture, "nce_classes", "ieee", CHANNELS, "", block, *launch)
    constants = {"BLOCK_K": nce.CLASS_BLOCK, "BLOCK_N": nce.CLASS_PIXELS}
    yield configured(_nce.nce_classes, identity, constants, {"target": "*i64", "part_count": "*i32"}, hot=True)
    for kernel, function in RATIO_FUNCTIONS.items():
        size = ratio.BLOCK if kernel == "ratio_centre" else CHANNELS
        identity = Identity(architecture, kernel, "ieee", CHANNELS, "", block_name(size), *launch)
        yield configured(function, identity, {"C": CHANNELS, "BLOCK_C": size}, {}, hot=True)


def _nce_configuration(architecture: str, kernel: str, kind: str, rows: int) -> Configuration:
    """Products are of float32 factors whatever the pixels, and those of 16-bit pixels are TF32."""
    products = "ieee" if kind == "ieee" else "tf32"
    tile = configs.NCE[kernel, products]
    blocks = configs.block_sizes(tile, CHANNELS, rows)
    one_block = rows <= blocks["BLOCK_J"]
    constants = {
        "C": CHANNELS, "ROWS": True, "COLUMNS": True, "ONE_BLOCK": one_block, **blocks, "PRECISION": products
    }  # fmt: skip
    variant = ("one block" if one_block else "blocks") if kernel == "nce_grad_pixels" else ""
    identity = Identity(
        architecture, kernel, kind, CHANNELS, variant, block_name(*blocks.values()), tile.num_warps, tile.num_stages
    )
    pixels = "*" + element(kind)
    types = {"pixels": pixels, "grad_pixels": pixels, "target": "*i64"}
    return configured(NCE_FUNCTIONS[kernel], identity, constants, types, hot=kind == "half" and one_block)
