"""One kernel compiled for one architecture, and what its binary takes."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from d2ls_fast.benchmarks.triton_resources.digest import digest
from d2ls_fast.kernels import configs

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "default": GPUTarget("cuda", 80, 32),
}
NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Identity(NamedTuple):
    """Which row of the table: the architecture's table, the kernel's name and kind in it, and its tile.

    ``variant`` tells apart what compile-time flags make of one kernel; ``block`` names the tile's sizes.
    """

    architecture: str
    kernel: str
    kind: str
    channels: int
    variant: str
    block: str
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Configuration:
    """A kernel as it is launched: the types of its arguments, its compile-time constants, warps and stages.

    Integers are those that the kernel itself does not specialise. An argument of neither ``types`` nor ``constants`` is
    a float32 array. ``hot``: must not spill.
    """

    identity: Identity
    hot: bool
    function: Any
    types: dict[str, str]
    constants: dict[str, Any]

    @property
    def signature(self) -> dict[str, str]:
        kernel = self.function
        special = dict.fromkeys(kernel.do_not_specialize, "i32") | dict.fromkeys(self.constants, "constexpr")
        return {name: (special | self.types).get(name, "*fp32") for name in kernel.arg_names}

    @property
    def digest(self) -> str:
        """Of everything that makes the binary: configurations of the same digest share one."""
        target, launch = TARGETS[self.identity.architecture], (self.identity.num_warps, self.identity.num_stages)
        compiled_for = [target.backend, target.arch, *launch]
        return digest(self.function, [*compiled_for, *sorted(self.signature.items()), *sorted(self.constants.items())])


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes. ``registers`` a thread, ``stack`` bytes a thread, ``shared`` bytes a program."""

    identity: Identity
    hot: bool
    digest: str
    registers: int
    stack: int
    shared: int
    matrix_instructions: dict[str, int]

    @property
    def shared_limit(self) -> int:
        return configs.ARCHITECTURES[self.identity.architecture].shared_bytes

    @property
    def fits(self) -> bool:
        return self.shared <= self.shared_limit

    @property
    def problem(self) -> str:
        """Why the configuration would be slow or must not ship, or nothing."""
        if not self.fits:
            return f"shared memory {self.shared} > {self.shared_limit}"
        return f"spills, stack {self.stack} B" if self.stack else ""

    @property
    def must_not_ship(self) -> bool:
        return bool(self.problem) and (self.hot or not self.fits)


def configured(
    function: Any, identity: Identity, constants: dict[str, Any], types: dict[str, str], hot: bool
) -> Configuration:
    """The configuration with those of the constants and types that the kernel has."""
    present = {name: value for name, value in constants.items() if name in function.arg_names}
    return Configuration(identity, hot, function, {k: v for k, v in types.items() if k in function.arg_names}, present)


def block_name(*sizes: int) -> str:
    return "x".join(str(size) for size in sizes)


def element(kind: str) -> str:
    """The pixels' type of a kind."""
    return "fp32" if kind in ("tf32", "ieee") else "bf16"


def precision(kind: str) -> str:
    return "tf32" if kind == "tf32" else "ieee"


def default_launch(architecture: str) -> tuple[int, int]:
    """(warps, stages) of a launch that names neither."""
    return 4, 2 if TARGETS[architecture].backend == "hip" else 3


def compiled(configuration: Configuration) -> Resources:
    """Compile and read the binary."""
    identity, signature = configuration.identity, configuration.signature
    target = TARGETS[identity.architecture]
    # As the launcher finds them: torch allocates at multiples of 16 bytes.
    aligned = {
        (index,): [["tt.divisibility", 16]] for index, kind in enumerate(signature.values()) if kind.startswith("*")
    }
    binary = triton.compile(
        ASTSource(configuration.function, signature, configuration.constants, aligned),
        target=target,
        options={"num_warps": identity.num_warps, "num_stages": identity.num_stages, "enable_fp_fusion": True},
    )
    read = _read_amd(binary.asm["amdgcn"]) if target.backend == "hip" else _read_nvidia(binary.asm["cubin"])
    registers, stack, instructions = read
    return Resources(
        identity, configuration.hot, configuration.digest, registers, stack, binary.metadata.shared, instructions
    )


def _count(pattern: str, text: str) -> dict[str, int]:
    found = re.findall(pattern, text)
    return {name: found.count(name) for name in sorted(set(found))}


def _read_nvidia(cubin: bytes) -> tuple[int, int, dict[str, int]]:
    """(registers, stack, matrix instructions)."""
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
