"""Runs every operator through every back end that a GPU has, once: to be watched by compute-sanitizer or ncu.

    python tests/run_operators.py [--only attend,refine] [--large]

Small tensors of odd sizes, forward and backward; ``--large`` runs the forward pass of the model's own sizes.
"""

from __future__ import annotations

import argparse

import torch
from operators import DEVICES, KERNELS, OPERATORS, SIZES, Size, results_of, served, tensors_of

from d2ls_fast.backends import backend
from d2ls_fast.ops import classify_labels

LARGE = [Size(8, (256, 256), 8, 7, 256)]
LABELS = "classify_labels"


def run(name: str, operator: str, size: Size, dtype: torch.dtype, forward_only: bool) -> None:
    labels = operator == LABELS
    tensors = tensors_of("classify" if labels else operator, size, dtype, DEVICES[name])
    if labels:
        full = (4 * size.grid[0], 4 * size.grid[1])
        with backend(name):
            classify_labels(*tensors.values(), size.grid, full, True)
    elif forward_only:
        with backend(name), torch.no_grad():
            OPERATORS[operator].call(tensors, size)
    else:
        results_of(operator, tensors, size, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join([*OPERATORS, LABELS]))
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    sizes = LARGE if arguments.large else SIZES[1:]
    # CUDA first, which has nothing to compile; Triton's kernels the tests have compiled, as they have the same sizes.
    names = [name for name in reversed(KERNELS) if name != "cpu"] or KERNELS
    count = 0
    for name in names:
        for operator in arguments.only.split(","):
            for size in sizes:
                for dtype in (torch.bfloat16,) if arguments.large else (torch.bfloat16, torch.float32):
                    if served(name, operator, size, dtype):
                        print(f"{name} {operator} {size} {dtype}", flush=True)
                        run(name, operator, size, dtype, arguments.large)
                        count += 1
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    print(f"{count} calls through {', '.join(names)}")


if __name__ == "__main__":
    main()
