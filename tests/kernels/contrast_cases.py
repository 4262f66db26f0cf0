"""The cases of test_contrast.py, run in a process of their own: Triton decides for its interpreter when it is imported.

Prints one JSON object: case -> quantity -> [error, allowed error].
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from accuracy import FLOOR, relative_error
from torch import Tensor

from d2ls_fast.backends import backend
from d2ls_fast.ops import pixel_dictionary_nce, ratio_contrast

NAMES = ("loss", "grad_pixels", "grad_dictionary")


@dataclass(frozen=True)
class Case:
    """One call: shapes, dtype, options and what is special about it."""

    batch: int
    pixels: int
    classes: int
    channels: int
    dtype: torch.dtype = torch.float32
    direction: str = "both"
    prototypes: int = 1
    temperature: float = 0.1
    balanced: bool = False
    ignore_index: int = 255
    strided: bool = False
    unlabelled: bool = False
    tf32: bool = False

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.pixels * 1000 + self.classes)
        b, n, k, c = self.batch, self.pixels, self.classes, self.channels
        dictionary = torch.randn(b, k * self.prototypes, c, generator=generator)
        target = torch.randint(0, k, (b, n), generator=generator)
        own = dictionary[:, :: self.prototypes].gather(1, target.unsqueeze(-1).expand(b, n, c))
        pixels = (own + 2 * torch.randn(b, n, c, generator=generator)).to(self.dtype)
        target = target.where(torch.rand(b, n, generator=generator) > 0.25, self.ignore_index)
        target[0, 0] = 0
        if self.unlabelled:
            target[-1] = self.ignore_index
        if self.strided:
            pixels = pixels.transpose(1, 2).contiguous().transpose(1, 2)
            dictionary, target = dictionary.repeat_interleave(2, 1)[:, ::2], target.repeat_interleave(2, 1)[:, ::2]
        return pixels, dictionary, target


CASES = {
    "one pixel, one class": Case(1, 1, 1, 16),
    "fp32, pixels": Case(3, 113, 7, 64, direction="pixels"),
    "fp32, pixels, balanced": Case(2, 37, 5, 96, direction="pixels", balanced=True),
    "fp32, dictionary": Case(2, 203, 5, 64, direction="dictionary"),
    "fp32, both, an image without labels": Case(2, 203, 16, 48, unlabelled=True),
    "fp32, ignore_index a class": Case(1, 113, 3, 64, ignore_index=2),
    "fp32, prototypes": Case(2, 113, 5, 64, prototypes=3),
    "fp32, blocks of entries": Case(1, 70, 150, 64),
    "fp32, blocks of entries, prototypes": Case(1, 113, 40, 32, prototypes=3),
    "fp32, many chunks": Case(1, 523, 5, 32),
    "fp32, wide": Case(1, 20, 3, 320),
    "fp32, views": Case(2, 37, 6, 64, strided=True),
    "fp32, sharp": Case(1, 113, 5, 64, temperature=1e-4, prototypes=2),
    "fp32, TF32 allowed": Case(1, 50, 5, 64, tf32=True),
    "bf16, pixels": Case(2, 37, 7, 256, torch.bfloat16, direction="pixels"),
    "bf16, both": Case(1, 203, 19, 64, torch.bfloat16),
    "bf16, blocks of entries": Case(1, 20, 40, 272, torch.bfloat16, prototypes=2),
    "fp16, both": Case(2, 113, 7, 64, torch.float16),
}
RATIOS = [(2, 2, 16), (3, 7, 64), (5, 19, 80), (1, 5, 16), (3, 1, 16), (2, 20, 256), (2, 3, 1024)]


def run(name: str, case: Case, dtype: torch.dtype) -> list[Tensor]:
    pixels, dictionary, target = case.inputs()
    wide = torch.promote_types(dtype, torch.float32)
    leaves = [pixels.detach().to(dtype).requires_grad_(), dictionary.detach().to(wide).requires_grad_()]
    with backend(name):
        loss = pixel_dictionary_nce(
            *leaves,
            target,
            case.temperature,
            case.ignore_index,
            case.balanced,
            case.direction,
            case.prototypes,  # type: ignore[arg-type]
        )
    (3 * loss).backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def compare(case: Case) -> dict[str, list[float]]:
    torch.backends.cuda.matmul.fp32_precision = "tf32" if case.tf32 else "ieee"
    truth, plain = run("reference", case, torch.float64), run("reference", case, case.dtype)
    results = run("triton", case, case.dtype)
    assert results[0].dtype == torch.float32 and results[1].dtype == case.dtype
    floor = FLOOR[case.dtype] + 2**-24 / case.temperature  # scores are cosines over the temperature: see accuracy.py
    return {
        name: [relative_error(result, exact), 2 * relative_error(unfused, exact) + floor]
        for name, result, unfused, exact in zip(NAMES, results, plain, truth, strict=True)
    }


def ratio(shape: tuple[int, int, int]) -> dict[str, list[float]]:
    dictionary = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))

    def both(name: str, dtype: torch.dtype) -> list[Tensor]:
        leaf = dictionary.to(dtype).requires_grad_()
        with backend(name):
            loss = ratio_contrast(leaf)
        (3 * loss).backward()
        assert leaf.grad is not None
        return [loss.detach(), leaf.grad]

    truth, plain = both("reference", torch.float64), both("reference", torch.float32)
    results = both("triton", torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(results, both("triton", torch.float32), strict=True))
    return {
        f"{shape} {name}": [relative_error(result, exact), 2 * relative_error(unfused, exact) + FLOOR[torch.float32]]
        for name, result, unfused, exact in zip(("loss", "grad"), results, plain, truth, strict=True)
    }


def repeat() -> dict[str, list[float]]:
    """Differing elements between repeats."""
    case = Case(2, 203, 20, 64, torch.bfloat16, prototypes=2)
    first, second = run("triton", case, case.dtype), run("triton", case, case.dtype)
    return {"repeats": [sum(int((a != b).sum()) for a, b in zip(first, second, strict=True)), 0]}


def refused() -> dict[str, list[float]]:
    """A label out of range: 1 where it is not refused."""
    pixels, dictionary, target = Case(1, 40, 3, 16).inputs()
    missed = {}
    for label in (3, -1, 2**40):
        target[0, 7] = label
        try:
            with backend("triton"):
                pixel_dictionary_nce(pixels, dictionary, target)
            missed[str(label)] = [1.0, 0.0]
        except ValueError as error:
            missed[str(label)] = [0.0 if "target must hold classes from 0 to 2" in str(error) else 1.0, 0.0]
    return missed


def main() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    report = {name: compare(case) for name, case in CASES.items()}
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    report["ratio"] = {name: pair for shape in RATIOS for name, pair in ratio(shape).items()}
    report |= {"repeat": repeat(), "labels out of range": refused()}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
