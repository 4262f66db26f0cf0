"""Runs every operator through every back end that a GPU has, once: to be watched by compute-sanitizer or ncu.

    python tests/run_operators.py [--only attend,refine] [--large]

Small tensors of odd sizes, forward and backward; ``--large`` runs the forward pass of the model's own sizes.
"""

from __future__ import annotations

import argparse

import torch
from interact_calls import Case
from operators import DEVICES, KERNELS, OPERATORS, SIZES, Size, results_of, served, tensors_of
from torch.utils._pytree import tree_map_only

from d2ls_fast.backends import backend
from d2ls_fast.ops import classify_labels, interact, interact_labels
from d2ls_fast.ops.interact import why_not

LARGE = [Size(8, (256, 256), 8, 7, 256)]
LABELS = "classify_labels"
RESIDENT = "interact"
# Several blocks an image, and an image that fills the device.
RESIDENT_SMALL = [Case(2, 301, 2, 5, 64, 32, 2), Case(1, 203, 8, 8, 256, 128, 1, torch.float16)]
RESIDENT_LARGE = [Case(1, 128 * 128, 8, 7, 256, 128, 3)]


def run_resident(cases: list[Case]) -> int:
    """The resident kernel, to pixels and to labels, where it runs; how often."""
    device, count = torch.device("cuda" if torch.cuda.is_available() else "cpu"), 0
    for case in cases:
        sizes = (case.images, case.pixels, case.channels, case.entries, case.heads, case.inner, case.stages)
        reason = why_not(device, case.dtype, *sizes)
        print(f"cuda {RESIDENT} {case} {reason}", flush=True)
        if not reason:
            given = (case.arguments(), case.classifier())
            arguments, classifier = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), given)
            with backend("cuda"), torch.no_grad():
                interact(*arguments, case.heads)
                interact_labels(*arguments, case.heads, classifier[:6], *classifier[6:], (1, case.pixels), True)
            count += 1
    return count


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
    parser.add_argument("--only", default=",".join([*OPERATORS, LABELS, RESIDENT]))
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    sizes = LARGE if arguments.large else SIZES[1:]
    # CUDA first, which has nothing to compile; Triton's kernels the tests have compiled, as they have the same sizes.
    names = [name for name in reversed(KERNELS) if name != "cpu"] or KERNELS
    operators = arguments.only.split(",")
    count = 0
    if RESIDENT in operators:  # first: what blocks of a launch tell each other no test without a GPU has seen
        operators.remove(RESIDENT)
        count += run_resident(RESIDENT_LARGE if arguments.large else RESIDENT_SMALL)
    for name in names:
        for operator in operators:
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
