"""The cases of test_dictionary_step.py, run in a process of their own: Triton decides for its interpreter at import.

Prints one JSON object: case -> quantity -> [error, allowed error].
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from accuracy import FLOOR, relative_error
from step_calls import ALL, Shape, double, inputs, under

BF16, FP16 = torch.bfloat16, torch.float16
CASES: dict[str, tuple[Shape, torch.dtype, tuple[str, ...]]] = {
    "one entry": (Shape(1, 1, 1, 16, 8), torch.float32, ALL),
    "fp32": (Shape(3, 7, 2, 96, 32), torch.float32, ALL),
    "fp32, model width": (Shape(1, 7, 4, 256, 64), torch.float32, ALL),
    "fp32, odd heads": (Shape(2, 9, 2, 48, 38), torch.float32, ALL),
    "fp32, many entries": (Shape(1, 150, 1, 16, 4), torch.float32, ALL),
    "fp32, widest": (Shape(1, 2, 1, 512, 32), torch.float32, ALL),
    "look alone": (Shape(2, 5, 2, 32, 16), torch.float32, ("look",)),
    "update alone": (Shape(2, 5, 2, 32, 16), torch.float32, ("update",)),
    "no look": (Shape(2, 5, 2, 32, 16), torch.float32, ("update", "entries")),
    "no entries": (Shape(2, 5, 2, 32, 16), torch.float32, ("update", "look")),
    "bf16": (Shape(3, 16, 2, 64, 32), BF16, ALL),
    "fp16": (Shape(2, 7, 2, 64, 32), FP16, ALL),
}


def compare(shape: Shape, dtype: torch.dtype, parts: tuple[str, ...]) -> dict[str, list[float]]:
    tensors = inputs(shape, parts)
    truth = under("reference", double(tensors), shape.heads, torch.float64)
    plain = under("reference", tensors, shape.heads, dtype)
    results = under("triton", tensors, shape.heads, dtype)
    assert list(results) == list(truth)
    assert all(results[name].dtype == plain[name].dtype for name in results)
    return {
        name: [relative_error(results[name], exact), 2 * relative_error(plain[name], exact) + FLOOR[dtype]]
        for name, exact in truth.items()
    }


def repeat() -> dict[str, list[float]]:
    """Differing elements between repeats, and between contiguous tensors and views."""
    tensors = inputs(Shape(2, 19, 1, 32, 16))
    views = {n: t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 1 else t for n, t in tensors.items()}
    first = under("triton", tensors, 1, BF16)
    others = (under("triton", tensors, 1, BF16), under("triton", views, 1, BF16))
    different = [sum(int((first[name] != other[name]).sum()) for name in first) for other in others]
    return {"repeats": [different[0], 0], "views": [different[1], 0]}


def main() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    print(json.dumps({name: compare(*case) for name, case in CASES.items()} | {"repeat": repeat()}))


if __name__ == "__main__":
    main()
