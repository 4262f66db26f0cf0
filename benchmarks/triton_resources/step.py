"""The kernels of dictionary_step, all parts present, for 8 heads: float32 but for the rows that meet the pixels."""

from __future__ import annotations

from collections.abc import Iterator

from d2ls_fast.benchmarks.triton_resources.compile import Configuration, Identity, block_name, configured
from d2ls_fast.kernels import _step_backward, _step_forward, configs

HEADS = 8
FUNCTIONS = {
    "step_update": _step_forward.step_update,
    "step_rows": _step_forward.step_rows,
    "step_grad_rows": _step_backward.step_grad_rows,
    "step_grad_dictionary": _step_backward.step_grad_dictionary,
    "step_grad_context": _step_backward.step_grad_context,
    "step_grad_weights": _step_backward.step_grad_weights,
}
OF_PIXELS = ("out_query", "out_key", "out_value", "grad_query", "grad_key", "grad_value")


def configurations(architecture: str) -> Iterator[Configuration]:
    tile = configs.ARCHITECTURES[architecture].step
    types = dict.fromkeys(OF_PIXELS, "*bf16") | {"eps": "fp32", "scale": "fp32"}
    for kernel, function in FUNCTIONS.items():
        for kind, channels in (("half", 256), ("wide", 512)):
            inner, wide = channels // 2, configs.power_of_two(channels)
            constants = {
                "C": channels, "INNER": inner, "WIDTH": inner // HEADS, "SAVE": True,
                "UPDATE": True, "LOOK": True, "ENTRIES": True,
                "BLOCK_R": tile.block_r, "BLOCK_C": min(tile.block_c, wide), "WIDE": wide,
            }  # fmt: skip
            block = block_name(tile.block_r, tile.block_c)
            identity = Identity(architecture, kernel, kind, channels, "", block, tile.num_warps, 1)
            yield configured(function, identity, constants, types, hot=kind == "half")
