"""The kernels of classify and segmentation_loss, bfloat16 pixels and 7 classes; ``kind`` is that of the products.

Hot with one prototype a class, as in the published model.
"""

from __future__ import annotations

from collections.abc import Iterator

from d2ls_fast.benchmarks.triton_resources.compile import Configuration, Identity, block_name, configured
from d2ls_fast.kernels import (
    _classify_backward,
    _classify_forward,
    _segmentation_backward,
    _segmentation_forward,
    configs,
)

CHANNELS, CLASSES, PROTOTYPES = 256, 7, 3
FUNCTIONS = {
    "classify_logits": _classify_forward.classify_logits,
    "classify_labels": _classify_forward.classify_labels,
    "classify_grad_pixels": _classify_backward.classify_grad_pixels,
    "classify_grad_hyper": _classify_backward.classify_grad_hyper,
    "segmentation_sums": _segmentation_forward.segmentation_sums,
    "segmentation_grad": _segmentation_backward.segmentation_grad,
}
TYPES = {
    "pixels": "*bf16",
    "grad_pixels": "*bf16",
    "labels": "*u8",
    "target": "*i64",
    "part_counts": "*i32",
    "smoothing": "fp32",
    "eps": "fp32",
}


def configurations(architecture: str) -> Iterator[Configuration]:
    for kernel, kind in configs.ARCHITECTURES[architecture].classify:
        blocks = [True, False] if "ONE_BLOCK" in FUNCTIONS[kernel].arg_names else [None]
        for one_block in blocks:
            yield _configuration(architecture, kernel, kind, 1, one_block)
        yield _configuration(architecture, kernel, kind, PROTOTYPES, blocks[0])


def _configuration(architecture: str, kernel: str, kind: str, prototypes: int, one_block: bool | None) -> Configuration:
    tile = configs.ARCHITECTURES[architecture].classify[kernel, kind]
    sizes = configs.classify_blocks(kernel, tile, CHANNELS, CLASSES, prototypes)
    constants = {
        "C": CHANNELS, "REDUCTION": "logsumexp", "CONFIDENCE": True, "ONE_BLOCK": one_block, **sizes, "PRECISION": kind,
    }  # fmt: skip
    parts = ["prototypes"] if prototypes > 1 else []
    if one_block is not None:
        parts.append("one block" if one_block else "blocks")
    block = block_name(sizes["BLOCK_K"] * sizes["PADDED"], sizes["BLOCK_N"], 16 * sizes["U"])
    identity = Identity(architecture, kernel, kind, CHANNELS, ", ".join(parts), block, tile.num_warps, tile.num_stages)
    return configured(FUNCTIONS[kernel], identity, constants, TYPES, hot=prototypes == 1)
