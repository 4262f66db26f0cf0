"""Compile every shipped Triton configuration ahead of time, without a GPU, and report what it takes.

For sm_80, sm_90, sm_100 and gfx942, and for the safe default on sm_80: registers, spilled bytes (stack), shared memory
and matrix instructions of every kernel at C = 256 (512 where wide), 64 query rows, 8 heads of 7 entries, 7 classes: the
whole table of ``kernels/configs.py``; refine's hot kind with 150 entries as well.
Writes ``benchmarks/results/triton_resources.md`` and ``.json``; exits 1 if any of them does not fit or a hot one (kind
``half``) spills.

    python benchmarks/triton_resources.py [--output FOLDER]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from d2ls_fast.files import replacing
from d2ls_fast.kernels import (
    _attend_backward,
    _attend_forward,
    _classify_backward,
    _classify_forward,
    _fuse_pyramid,
    _nce,
    _refine_backward,
    _refine_backward_rows,
    _refine_forward,
    _refine_tiles,
    _segmentation_backward,
    _segmentation_forward,
    _step_backward,
    _step_forward,
    configs,
    nce,
    ratio,
)

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "default": GPUTarget("cuda", 80, 32),
}
FUNCTIONS = {
    "forward": _attend_forward.attend_chunk,
    "grad_pixels": _attend_backward.attend_grad_pixels,
    "grad_query": _attend_backward.attend_grad_query,
}
REFINE_FUNCTIONS = {
    "refine": _refine_forward.refine_chunk,
    "refine_attend": _refine_forward.refine_chunk,
    "refine_grad_total": _refine_backward.refine_grad_total,
    "refine_attend_grad_total": _refine_backward.refine_grad_total,
    "refine_grad_rows": _refine_backward_rows.refine_grad_rows,
    "refine_grad_pixels": _refine_backward_rows.refine_grad_pixels,
}
STEP_FUNCTIONS = {
    "step_update": _step_forward.step_update,
    "step_rows": _step_forward.step_rows,
    "step_grad_rows": _step_backward.step_grad_rows,
    "step_grad_dictionary": _step_backward.step_grad_dictionary,
    "step_grad_context": _step_backward.step_grad_context,
    "step_grad_weights": _step_backward.step_grad_weights,
}
CLASSIFY_FUNCTIONS = {
    "classify_logits": _classify_forward.classify_logits,
    "classify_labels": _classify_forward.classify_labels,
    "classify_grad_pixels": _classify_backward.classify_grad_pixels,
    "classify_grad_hyper": _classify_backward.classify_grad_hyper,
    "segmentation_sums": _segmentation_forward.segmentation_sums,
    "segmentation_grad": _segmentation_backward.segmentation_grad,
}
PYRAMID_FUNCTIONS = {
    "pyramid_sum": _fuse_pyramid.pyramid_sum,
    "pyramid_gather": _fuse_pyramid.pyramid_gather,
}
CONTRAST_FUNCTIONS = {
    "nce_rows": _nce.nce_rows,
    "nce_columns": _nce.nce_columns,
    "nce_grad_pixels": _nce.nce_grad_pixels,
    "nce_grad_entries": _nce.nce_grad_entries,
    "nce_classes": _nce.nce_classes,
    "ratio_means": ratio.ratio_means,
    "ratio_centre": ratio.ratio_centre,
    "ratio_grad": ratio.ratio_grad,
}
TYPED = {
    "pixels", "pe", "query", "grad", "grad_pixels", "grad_pe",
    "key", "value", "refined", "grad_refined", "grad_total",
    "fused", "product_1", "product_2", "product_3", "grad_product",
    "out_query", "out_key", "out_value", "grad_query", "grad_key", "grad_value",
}  # fmt: skip
COUNTS = {
    "num_pixels", "num_rows", "chunks", "tiles_per_chunk", *_refine_tiles.COUNTS,
    "height", "width", "classes", "prototypes", "target_height", "target_width", "ignore_index",
}  # fmt: skip
OTHER_TYPES = {
    "eps": "fp32",
    "scale": "fp32",
    "smoothing": "fp32",
    "labels": "*u8",
    "target": "*i64",
    "part_counts": "*i32",
    "part_count": "*i32",
}
COUNTS |= {"height", "width", "height_1", "width_1", "height_2", "width_2", "height_3", "width_3"}
COUNTS |= {"level_height", "level_width", "num_entries", "chunk_pixels", "batch"}
NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ROWS = 64
HEADS, ENTRIES, MANY_ENTRIES = 8, 7, 150
CLASSES = 7


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes. ``registers`` a thread, ``stack`` bytes a thread, ``shared`` bytes a program."""

    architecture: str
    kernel: str
    kind: str
    channels: int
    variant: str
    block: str
    num_warps: int
    num_stages: int
    registers: int
    stack: int
    shared: int
    shared_limit: int
    matrix_instructions: dict[str, int]

    @property
    def problem(self) -> str:
        """Why the configuration must not ship, or nothing."""
        if self.shared > self.shared_limit:
            return f"shared memory {self.shared} > {self.shared_limit}"
        return f"spills, stack {self.stack} B" if self.stack else ""


def _count(pattern: str, text: str) -> dict[str, int]:
    found = re.findall(pattern, text)
    return {name: found.count(name) for name in sorted(set(found))}


def _read_nvidia(cubin: bytes) -> tuple[int, int, dict[str, int]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)

        def tool(name: str, option: str) -> str:
            command = [str(NVIDIA_TOOLS / name), option, str(path)]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        usage = tool("cuobjdump", "--dump-resource-usage")
        sass = tool("nvdisasm", "-c")
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {usage!r}")
    return int(found[1]), int(found[2]), _count(r"\b(HGMMA|HMMA|UTC\w*MMA)\b", sass)


def _read_amd(assembly: str) -> tuple[int, int, dict[str, int]]:
    registers = re.search(r"\.vgpr_count:\s+(\d+)", assembly)
    stack = re.search(r"\.private_segment_fixed_size:\s+(\d+)", assembly)
    if registers is None or stack is None:
        raise RuntimeError("the gfx assembly names no register count")
    return int(registers[1]), int(stack[1]), _count(r"\b(v_mfma)", assembly)


def _compile(
    name: str, function: Any, kind: str, constants: dict[str, Any], tile: Any
) -> tuple[tuple[int, int, int], dict[str, int]]:
    """((registers, stack, shared memory), matrix instructions) of one kernel compiled for one target."""
    stages = 1 if isinstance(tile, configs.StepTile) else tile.num_stages
    element = "fp32" if kind in ("tf32", "ieee") else "bf16"
    signature, attributes = {}, {}
    for index, argument in enumerate(function.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in COUNTS:
            signature[argument] = "i32"
        else:
            signature[argument] = OTHER_TYPES.get(argument, "*" + (element if argument in TYPED else "fp32"))
        if signature[argument].startswith("*"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(function, signature, constants, attributes),
        target=TARGETS[name],
        options={"num_warps": tile.num_warps, "num_stages": stages, "enable_fp_fusion": True},
    )
    if TARGETS[name].backend == "hip":
        registers, stack, instructions = _read_amd(compiled.asm["amdgcn"])
    else:
        registers, stack, instructions = _read_nvidia(compiled.asm["cubin"])
    return (registers, stack, compiled.metadata.shared), instructions


def compile_one(
    name: str, kernel: str, kind: str, channels: int = 256, one_block: bool = True, need_pe: bool = False
) -> Resources:
    """Compile one entry of the configuration table for its target and read its resources."""
    function, table = FUNCTIONS[kernel], configs.ARCHITECTURES[name]
    tile = table.tiles[kernel, kind]
    blocks = configs.block_sizes(tile, channels, ROWS)
    constants: dict[str, object] = {
        "C": channels,
        "PE_SHARED": True,
        **blocks,
        "PRECISION": "tf32" if kind == "tf32" else "ieee",
    }
    if kernel == "grad_pixels":
        constants |= {"NEED_PE": need_pe, "ONE_BLOCK": one_block}
    usage, instructions = _compile(name, function, kind, constants, tile)
    variant = f"{'one block' if one_block else 'blocks'}{', pe' if need_pe else ''}" if kernel == "grad_pixels" else ""
    return Resources(
        name, kernel, kind, channels, variant, "x".join(str(size) for size in blocks.values()), tile.num_warps,
        tile.num_stages, *usage, table.shared_bytes, instructions,
    )  # fmt: skip


def compile_refine(
    name: str, kernel: str, kind: str, channels: int = 256, need_pe: bool = False, entries: int = ENTRIES
) -> Resources:
    """``compile_one`` for a kernel of refine or refine_attend."""
    function, table = REFINE_FUNCTIONS[kernel], configs.ARCHITECTURES[name]
    tile = table.refine_tile(kernel, kind, entries)
    assert tile is not None, (name, kernel, kind)
    blocks = configs.refine_blocks(tile, channels, HEADS, entries)
    one_block = HEADS * blocks["PADDED"] <= blocks["BLOCK_J"]
    flags = {
        "C": channels, "PE_SHARED": True, "ATTEND": kernel in configs.FUSED_KERNELS, "ONE_BLOCK": one_block,
        "WITH_PIXELS": one_block, "NEED_PE": need_pe, "ADD_PE": False, "BLOCK_Q": ROWS, **blocks,
        "PRECISION": "tf32" if kind == "tf32" else "ieee",
    }  # fmt: skip
    constants = {key: value for key, value in flags.items() if key in function.arg_names}
    usage, instructions = _compile(name, function, kind, constants, tile)
    variant = f"{'one block' if one_block else 'blocks'}{', pe' if need_pe else ''}"
    if blocks["PADDED"] > blocks["BLOCK_J"]:
        variant = "heads in blocks"
    return Resources(
        name, kernel, kind, channels, variant, "x".join(str(blocks[f"BLOCK_{axis}"]) for axis in "JNC"), tile.num_warps,
        tile.num_stages, *usage, table.shared_bytes, instructions,
    )  # fmt: skip


def compile_classify(name: str, kernel: str, kind: str, prototypes: int = 1, one_block: bool = True) -> Resources:
    """``compile_one`` for classify and segmentation_loss, on bfloat16 pixels; ``kind`` is that of the products."""
    function, table = CLASSIFY_FUNCTIONS[kernel], configs.ARCHITECTURES[name]
    tile = table.classify[kernel, kind]
    blocks = configs.classify_blocks(kernel, tile, 256, CLASSES, prototypes)
    flags = {
        "C": 256, "REDUCTION": "logsumexp", "CONFIDENCE": True, "ONE_BLOCK": one_block, **blocks, "PRECISION": kind,
    }  # fmt: skip
    constants = {key: value for key, value in flags.items() if key in function.arg_names}
    usage, instructions = _compile(name, function, "half", constants, tile)
    variant = "prototypes" if prototypes > 1 else ""
    if "ONE_BLOCK" in constants:
        variant = ", ".join(filter(None, (variant, "one block" if one_block else "blocks")))
    block = f"{blocks['BLOCK_K'] * blocks['PADDED']}x{blocks['BLOCK_N']}x{16 * blocks['U']}"
    return Resources(
        name, kernel, kind, 256, variant, block, tile.num_warps, tile.num_stages, *usage, table.shared_bytes,
        instructions,
    )  # fmt: skip


def compile_pyramid(name: str, kernel: str, kind: str, channels: int = 256) -> Resources:
    """``compile_one`` for a kernel of fuse_pyramid, with three coarse levels."""
    function, table = PYRAMID_FUNCTIONS[kernel], configs.ARCHITECTURES[name]
    tile = table.pyramid[kernel, kind]
    flags = {"C": channels, "LEVELS": 3, "BLOCK_N": tile.block_n, "BLOCK_C": min(tile.block_c, channels)}
    constants = {key: value for key, value in flags.items() if key in function.arg_names}
    usage, instructions = _compile(name, function, kind, constants, tile)
    return Resources(
        name, kernel, kind, channels, "", f"{tile.block_n}x{tile.block_c}", tile.num_warps, tile.num_stages, *usage,
        table.shared_bytes, instructions,
    )  # fmt: skip


def compile_contrast(name: str, kernel: str, kind: str, channels: int = 256, rows: int = ROWS) -> Resources:
    """``compile_one`` for a kernel of nce or ratio with ``rows`` entries."""
    function, table = CONTRAST_FUNCTIONS[kernel], configs.ARCHITECTURES[name]
    tile = configs.NCE.get((kernel, "ieee" if kind == "ieee" else "tf32"), configs.TileConfig(256, 64, 64, 4, 1))
    blocks = configs.block_sizes(tile, channels, rows)
    one_block = rows <= blocks["BLOCK_J"]
    if kernel.startswith("ratio"):
        blocks["BLOCK_C"] = ratio.BLOCK if kernel == "ratio_centre" else configs.power_of_two(channels)
    flags = {
        "C": channels, "ROWS": True, "COLUMNS": True, "ONE_BLOCK": one_block, "BLOCK_K": nce.CLASS_BLOCK, **blocks,
        "PRECISION": "ieee" if kind == "ieee" else "tf32",
    }  # fmt: skip
    constants = {key: value for key, value in flags.items() if key in function.arg_names}
    usage, instructions = _compile(name, function, kind, constants, tile)
    variant = ("one block" if one_block else "blocks") if kernel == "nce_grad_pixels" else ""
    return Resources(
        name, kernel, kind, channels, variant,
        "x".join(str(constants[size]) for size in blocks if size in constants), tile.num_warps, tile.num_stages,
        *usage, table.shared_bytes, instructions,
    )  # fmt: skip


def compile_step(name: str, kernel: str, kind: str, channels: int = 256) -> Resources:
    """``compile_one`` for a kernel of dictionary_step, all parts present."""
    function, table = STEP_FUNCTIONS[kernel], configs.ARCHITECTURES[name]
    inner, wide = channels // 2, configs.power_of_two(channels)
    flags = {
        "C": channels, "INNER": inner, "WIDTH": inner // HEADS, "SAVE": True,
        "UPDATE": True, "LOOK": True, "ENTRIES": True,
        "BLOCK_R": table.step.block_r, "BLOCK_C": min(table.step.block_c, wide), "WIDE": wide,
    }  # fmt: skip
    constants = {key: value for key, value in flags.items() if key in function.arg_names}
    usage, instructions = _compile(name, function, kind, constants, table.step)
    return Resources(
        name, kernel, kind, channels, "", f"{table.step.block_r}x{table.step.block_c}", table.step.num_warps, 1,
        *usage, table.shared_bytes, instructions,
    )  # fmt: skip


def compile_contrasts(name: str) -> list[Resources]:
    """The contrastive losses for one architecture."""
    rows = []
    for kernel in CONTRAST_FUNCTIONS:
        if kernel not in configs.NCE_KERNELS:
            rows.append(compile_contrast(name, kernel, "ieee"))
            continue
        rows += [compile_contrast(name, kernel, kind) for kind in ("half", "tf32", "ieee")]
        if kernel == "nce_grad_pixels":
            rows += [compile_contrast(name, kernel, kind, rows=4 * ROWS) for kind in ("half", "tf32", "ieee")]
    return rows


def compile_all() -> list[Resources]:
    """Every architecture, kernel and kind; the pixel gradient in its four variants."""
    rows = []
    for name in configs.ARCHITECTURES:
        for kernel, kind in configs.ARCHITECTURES[name].tiles:
            variants = [(True, False)]
            if kernel == "grad_pixels":
                variants = [(one_block, need_pe) for one_block in (True, False) for need_pe in (False, True)]
            for one_block, need_pe in variants:
                channels = 512 if kind == "wide" else 256
                rows.append(compile_one(name, kernel, kind, channels, one_block, need_pe))
        for kernel, kind in configs.ARCHITECTURES[name].refine:
            channels = 512 if kind == "wide" else 256
            rows.append(compile_refine(name, kernel, kind, channels))
            if kind == "half":
                rows.append(compile_refine(name, kernel, kind, channels, entries=MANY_ENTRIES))
            if "NEED_PE" in REFINE_FUNCTIONS[kernel].arg_names and kernel != "refine_grad_total":
                rows.append(compile_refine(name, kernel, kind, channels, need_pe=True))
        for kernel, kind in configs.ARCHITECTURES[name].classify:
            rows.append(compile_classify(name, kernel, kind))
            rows.append(compile_classify(name, kernel, kind, prototypes=3))
            if "ONE_BLOCK" in CLASSIFY_FUNCTIONS[kernel].arg_names:
                rows.append(compile_classify(name, kernel, kind, one_block=False))
        rows += [compile_pyramid(name, kernel, kind) for kernel, kind in configs.ARCHITECTURES[name].pyramid]
        rows += compile_contrasts(name)
        for kernel in STEP_FUNCTIONS:
            rows += [compile_step(name, kernel, "half"), compile_step(name, kernel, "wide", 512)]
    return rows


def table(rows: list[Resources]) -> str:
    """The report as Markdown."""
    lines = [
        "# Triton kernels: resources of every shipped configuration",
        "",
        f"Compiled ahead of time with Triton {triton.__version__}, {ROWS} query rows, refine with {HEADS} heads "
        f"of {ENTRIES} entries. Block: J x N x C (x V). "
        "Registers and stack (spills, bytes) a thread, shared memory in KiB a program.",
        "",
        "| architecture | kernel | kind | C | variant | block | warps | stages | registers | stack | shared "
        "| matrix instructions | problem |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        instructions = ", ".join(f"{name} {count}" for name, count in row.matrix_instructions.items())
        cells = [
            row.architecture, row.kernel, row.kind, row.channels, row.variant, row.block, row.num_warps, row.num_stages,
            row.registers, row.stack, f"{row.shared / 1024:.0f} of {row.shared_limit // 1024}", instructions,
            row.problem,
        ]  # fmt: skip
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    folder = parser.parse_args().output
    rows = compile_all()
    report = {"triton": triton.__version__, "rows": [asdict(row) | {"problem": row.problem} for row in rows]}
    texts = {"triton_resources.md": table(rows), "triton_resources.json": json.dumps(report, indent=1) + "\n"}
    for name, text in texts.items():
        with replacing(folder / name) as path:
            path.write_text(text, encoding="utf-8")
    problems = [row for row in rows if row.problem]
    grave = [row for row in problems if row.kind == "half" or row.shared > row.shared_limit]
    for row in problems:
        print(f"{row.architecture} {row.kernel} {row.kind} {row.variant}: {row.problem}", file=sys.stderr)
    print(f"{len(rows)} configurations, {len(problems)} with problems: {folder / 'triton_resources.md'}")
    return 1 if grave else 0


if __name__ == "__main__":
    raise SystemExit(main())
