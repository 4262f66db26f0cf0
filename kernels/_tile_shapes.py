"""What a tile is for each family of Triton kernels: the columns of the tables in ``configs``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TileConfig:
    """Tile of one kernel: pixels x channels of a score product (``block_c``) and of an output slice (``block_v``)."""

    block_n: int
    block_c: int
    block_v: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class RefineTile:
    """Tile of a refine kernel: rows of key and value in a block (a power of two), pixels of a tile.

    All channels of the tile are on chip, for the norm.
    """

    block_j: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class ClassifyTile:
    """Tile of a classify or segmentation kernel: pixels (of up to 256 channels) and class vectors in a block."""

    block_n: int
    block_j: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class PyramidTile:
    """Tile of a pyramid kernel: pixels (at most one row of a coarse level in the backward) x channels."""

    block_n: int
    block_c: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class StepTile:
    """Tile of the dictionary_step kernels: tokens x channels of a product, and the C that shared memory takes."""

    block_r: int
    block_c: int
    num_warps: int
    max_channels: int
