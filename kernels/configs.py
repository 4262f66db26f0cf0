"""Tile sizes the Triton kernels ship with, as data: one table per architecture and a safe one for all others.

Nothing is tuned at first use. The sizes are those that compile ahead of time within the architecture's shared memory
and, for 16-bit inputs at C = 256, without register spills (``benchmarks/triton_resources`` compiles every entry).
The fused passes of refine_attend have entries only where they do not spill.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ._tile_shapes import ClassifyTile, PyramidTile, RefineTile, StepTile, TileConfig

# A chunk of fewer pixels would write more partial results than it reads pixels.
MIN_CHUNK_PIXELS = 128
BLOCK_J_LIMIT = 64

PYRAMID_KERNELS = ("pyramid_sum", "pyramid_gather")
# Both only move and add; 16-byte words of every lane and enough loads in flight is all they want.
_PYRAMID = {
    ("pyramid_sum", "half"): PyramidTile(32, 128, 4, 1),
    ("pyramid_sum", "ieee"): PyramidTile(16, 128, 4, 1),
    ("pyramid_gather", "half"): PyramidTile(16, 128, 4, 2),
    ("pyramid_gather", "ieee"): PyramidTile(16, 128, 4, 2),
}
_STEP = StepTile(16, 64, 4, 1024)


@dataclass(frozen=True)
class Architecture:
    """The tiles of one architecture, and what it has: shared memory [bytes] and how many programs fill it."""

    programs: int
    shared_bytes: int
    tiles: dict[tuple[str, str], TileConfig]
    refine: dict[tuple[str, str], RefineTile]
    classify: dict[tuple[str, str], ClassifyTile]
    pyramid: dict[tuple[str, str], PyramidTile] = field(default_factory=lambda: _PYRAMID)
    step: StepTile = _STEP
    # Of kind ``half``, for heads with more entries than rows in a block, where that tile would spill.
    divided: dict[str, RefineTile] = field(default_factory=dict)

    def refine_tile(self, kernel: str, kind: str, entries: int) -> RefineTile | None:
        """The tile for heads of so many entries; None where the table has none."""
        tile = self.refine.get((kernel, kind))
        if tile is not None and kind == "half" and entries > tile.block_j:
            return self.divided.get(kernel, tile)
        return tile


KERNELS = ("forward", "grad_pixels", "grad_query")
REFINE_KERNELS = ("refine", "refine_grad_total", "refine_grad_rows", "refine_grad_pixels")
# With attend in the same pass: only where the table has them, and otherwise as two passes.
FUSED_KERNELS = ("refine_attend", "refine_attend_grad_total")
CLASSIFY_KERNELS = ("classify_logits", "classify_labels", "classify_grad_pixels", "classify_grad_hyper")
# All class vectors of these are in one block.
SEGMENTATION_KERNELS = ("segmentation_sums", "segmentation_grad")
# Pixels of every dtype are widened to float32 as they are read: only the kind of the products matters.
CLASSIFY_KINDS = ("tf32", "ieee")
# half: bfloat16 and float16, up to 256 channels; wide: the same beyond; tf32 and ieee: float32 products.
KINDS = ("half", "wide", "tf32", "ieee")

_IEEE = {
    ("forward", "ieee"): TileConfig(16, 32, 256, 8, 2),
    ("grad_pixels", "ieee"): TileConfig(16, 32, 64, 8, 1),
    ("grad_query", "ieee"): TileConfig(16, 32, 256, 8, 2),
}
_SMALL = {
    ("forward", "half"): TileConfig(32, 64, 256, 8, 2),
    ("forward", "wide"): TileConfig(32, 64, 256, 8, 2),
    ("forward", "tf32"): TileConfig(16, 32, 256, 8, 2),
    ("grad_pixels", "half"): TileConfig(32, 32, 64, 8, 2),
    ("grad_pixels", "wide"): TileConfig(32, 32, 64, 8, 2),
    ("grad_pixels", "tf32"): TileConfig(16, 32, 32, 8, 1),
    ("grad_query", "half"): TileConfig(32, 64, 256, 8, 2),
    ("grad_query", "wide"): TileConfig(32, 64, 256, 8, 2),
    ("grad_query", "tf32"): TileConfig(16, 32, 256, 8, 2),
    **_IEEE,
}

_REFINE = {
    (kernel, kind): RefineTile(block_j, block_n, 8, 1)
    for kernel in REFINE_KERNELS
    for kind, block_j, block_n in (("half", 16, 32), ("wide", 16, 16), ("tf32", 16, 16), ("ieee", 16, 16))
}
# Exact float32 products of two factors with all channels: eight pixels, to stay within 64 KiB of shared memory.
_REFINE |= {(kernel, "ieee"): RefineTile(16, 8, 8, 1) for kernel in ("refine_grad_rows", "refine_grad_pixels")}
_REFINE_LARGE = {
    **_REFINE,
    ("refine", "half"): RefineTile(64, 32, 8, 2),
    ("refine_grad_total", "half"): RefineTile(64, 16, 8, 1),
    ("refine_grad_rows", "half"): RefineTile(32, 32, 8, 1),
    ("refine_grad_pixels", "half"): RefineTile(32, 32, 8, 1),
}

_CLASSIFY = {
    (kernel, kind): ClassifyTile(block_n, 16, num_warps, 1)
    for kernel, block_n, num_warps in (
        ("classify_logits", 16, 4),
        ("classify_labels", 16, 4),
        ("classify_grad_pixels", 8, 8),
        ("classify_grad_hyper", 8, 4),
        ("segmentation_sums", 16, 4),
        ("segmentation_grad", 8, 8),
    )
    for kind in CLASSIFY_KINDS
}
_CLASSIFY["segmentation_grad", "ieee"] = ClassifyTile(8, 16, 8, 2)
# pixel_dictionary_nce, on every architecture: its products are of float32 factors (tf32 also for 16-bit pixels).
NCE_KERNELS = ("nce_rows", "nce_columns", "nce_grad_pixels", "nce_grad_entries")
NCE = {
    ("nce_rows", "tf32"): TileConfig(32, 32, 64, 4, 2),
    ("nce_rows", "ieee"): TileConfig(32, 32, 64, 8, 2),
    ("nce_columns", "tf32"): TileConfig(32, 32, 64, 4, 2),
    ("nce_columns", "ieee"): TileConfig(32, 32, 64, 8, 2),
    ("nce_grad_pixels", "tf32"): TileConfig(64, 32, 32, 8, 2),
    ("nce_grad_pixels", "ieee"): TileConfig(32, 32, 32, 8, 1),
    ("nce_grad_entries", "tf32"): TileConfig(32, 32, 64, 8, 1),
    ("nce_grad_entries", "ieee"): TileConfig(16, 32, 32, 8, 1),
}

ARCHITECTURES = {
    "sm_80": Architecture(
        programs=216,
        shared_bytes=163 * 1024,
        tiles={
            **_SMALL,
            ("forward", "half"): TileConfig(32, 256, 256, 8, 3),
            ("grad_query", "half"): TileConfig(32, 256, 256, 8, 2),
        },
        refine=_REFINE_LARGE,
        classify=_CLASSIFY,
        divided={"refine_grad_rows": RefineTile(16, 32, 8, 1)},
    ),
    "sm_90": Architecture(
        programs=264,
        shared_bytes=227 * 1024,
        tiles={
            **_SMALL,
            # Four warps: with eight, both warp groups would compute the same 64-row score product.
            ("forward", "half"): TileConfig(32, 256, 256, 4, 2),
            ("grad_pixels", "half"): TileConfig(64, 64, 64, 4, 2),
            ("grad_query", "half"): TileConfig(32, 256, 256, 4, 2),
        },
        refine={**_REFINE_LARGE, ("refine_grad_pixels", "half"): RefineTile(64, 16, 8, 1)},
        classify={**_CLASSIFY, ("classify_grad_hyper", "tf32"): ClassifyTile(8, 16, 4, 2)},
        divided={"refine_grad_rows": RefineTile(16, 32, 8, 1), "refine_grad_pixels": RefineTile(64, 16, 8, 2)},
    ),
    "sm_100": Architecture(
        programs=296,
        shared_bytes=227 * 1024,
        tiles={
            **_SMALL,
            ("forward", "half"): TileConfig(64, 256, 256, 8, 2),
            ("grad_pixels", "half"): TileConfig(64, 64, 128, 8, 2),
            ("grad_query", "half"): TileConfig(32, 256, 256, 8, 2),
        },
        refine={
            **_REFINE_LARGE,
            ("refine", "half"): RefineTile(64, 32, 4, 2),
            ("refine_attend", "half"): RefineTile(64, 16, 8, 1),
            ("refine_grad_total", "half"): RefineTile(64, 32, 8, 1),
            ("refine_grad_rows", "half"): RefineTile(64, 32, 8, 1),
        },
        classify={**_CLASSIFY, ("classify_grad_pixels", "tf32"): ClassifyTile(8, 16, 8, 2)},
        divided={"refine": RefineTile(64, 32, 8, 1)},
    ),
    "gfx942": Architecture(
        programs=304,
        shared_bytes=64 * 1024,
        tiles=_SMALL,
        refine={
            **_REFINE,
            ("refine_grad_rows", "half"): RefineTile(16, 16, 8, 1),
            ("refine_grad_rows", "ieee"): RefineTile(16, 16, 8, 1),
            ("refine_grad_pixels", "ieee"): RefineTile(16, 16, 8, 1),
        },
        classify=_CLASSIFY,
        divided={"refine_grad_rows": RefineTile(16, 16, 4, 1), "refine_grad_pixels": RefineTile(16, 16, 8, 1)},
        step=StepTile(16, 64, 4, 512),
    ),
    # Any other GPU: sized for 64 KiB of shared memory.
    "default": Architecture(
        programs=128,
        shared_bytes=64 * 1024,
        tiles=_SMALL,
        refine=_REFINE,
        classify=_CLASSIFY,
        step=StepTile(16, 64, 4, 512),
    ),
}


def architecture(device: torch.device) -> Architecture:
    """The table for a device; ``default`` for architectures without one and for the interpreter on the CPU."""
    if device.type != "cuda":
        return ARCHITECTURES["default"]
    if torch.version.hip:
        name = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    else:
        major, minor = torch.cuda.get_device_capability(device)
        name = f"sm_{major}{minor}"
    return ARCHITECTURES.get(name, ARCHITECTURES["default"])


def why_not(channels: int) -> str:
    """Why the Triton kernels cannot take pixels of so many channels, or nothing: their only limit on shapes."""
    if channels % 16 or not 16 <= channels <= 1024:
        return f"channels must be a multiple of 16 from 16 to 1024, got {channels}"
    return ""


def kind(dtype: torch.dtype, channels: int, tf32: bool) -> str:
    """Which column of the table a call uses."""
    if dtype == torch.float32:
        return "tf32" if tf32 else "ieee"
    return "half" if channels <= 256 else "wide"


def power_of_two(n: int) -> int:
    """The smallest power of two >= n."""
    return 1 << (n - 1).bit_length()


def block_sizes(tile: TileConfig, channels: int, rows: int) -> dict[str, int]:
    """The kernels' compile-time block sizes for C channels and J rows (matrix instructions need at least 16)."""
    padded = power_of_two(channels)
    return {
        "BLOCK_J": min(BLOCK_J_LIMIT, max(16, power_of_two(rows))),
        "BLOCK_N": tile.block_n,
        "BLOCK_C": min(tile.block_c, padded),
        "BLOCK_V": min(tile.block_v, padded),
    }


def refine_blocks(tile: RefineTile, channels: int, heads: int, entries: int) -> dict[str, int]:
    """Compile-time block sizes of the refine kernels.

    A block of rows holds whole heads, padded to a power of two; of a head with more entries than rows in a block, it
    holds a part.
    """
    padded, most = power_of_two(entries), max(16, tile.block_j)
    return {
        "BLOCK_J": max(16, min(most, power_of_two(heads * padded))),
        "BLOCK_N": tile.block_n,
        "BLOCK_C": power_of_two(channels),
        "PADDED": padded if padded <= most else -(-entries // most) * most,
    }


def classify_blocks(kernel: str, tile: ClassifyTile, channels: int, classes: int, prototypes: int) -> dict[str, int]:
    """Compile-time block sizes of the classify kernels: a block holds the padded prototypes of whole classes.

    The segmentation kernels have all classes in one block, of fewer pixels where there are many.
    """
    features = max(16, power_of_two(channels // 16))
    padded = power_of_two(prototypes)
    fitting = power_of_two(classes)
    if kernel not in SEGMENTATION_KERNELS:
        fitting = max(1, min(tile.block_j // padded, fitting))
    block_k = max(fitting, 16 // padded)  # matrix instructions need 16 rows
    widest = max(features, block_k * padded if kernel in SEGMENTATION_KERNELS else 0)
    return {
        "BLOCK_N": max(1, tile.block_n * 16 // widest),
        "U": features,
        "BLOCK_K": block_k,
        "PADDED": padded,
    }


def split(num_pixels: int, block_n: int, groups: int, programs: int) -> tuple[int, int]:
    """(chunks, tiles per chunk): N split so that groups x chunks programs fill the device; from shapes alone."""
    tiles = -(-num_pixels // block_n)
    wanted = min(max(1, programs // groups), -(-num_pixels // max(MIN_CHUNK_PIXELS, block_n)))
    tiles_per_chunk = -(-tiles // wanted)
    return -(-tiles // tiles_per_chunk), tiles_per_chunk
