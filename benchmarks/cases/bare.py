"""refine, refine_attend and classify_labels alone: one pass over the pixels each, without the folding around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from d2ls_fast.backends import backend as using
from d2ls_fast.benchmarks.cases.common import EMBED, HEADS, TOLERANCE, Sizes, random, standard_variants
from d2ls_fast.benchmarks.harness import Case
from d2ls_fast.ops import classify, classify_labels, refine, refine_attend

EPS = 1e-5


def cases(sizes: Sizes) -> list[Case]:
    generator = sizes.generator()
    b, n, c, j = sizes.batch, sizes.pixels, EMBED, HEADS * sizes.num_classes
    pixels, pixel_pe = random(generator, sizes, b, n, c), random(generator, sizes, n, c)
    key, value, query = (random(generator, sizes, b, j, c) * c**-0.5 for _ in range(3))
    key_bias = random(generator, sizes, b, j).float()
    vectors = [random(generator, sizes, c).float() for _ in range(3)]
    rows = [pixels, pixel_pe, key, key_bias, value, *vectors]
    image, table, product = pixels.nbytes, pixel_pe.nbytes, 2 * pixels.numel() * j

    update, both = (partial(operator, num_heads=HEADS, eps=EPS) for operator in (refine, refine_attend))
    return [
        _case("refine", sizes, update, rows, 2 * image + table, 2 * product),
        _case("refine_attend", sizes, both, [*rows, query], 2 * image + table, 4 * product),
        _labels(sizes, pixels, random(generator, sizes, b, sizes.num_classes, c // 16).float()),
    ]


def _case(
    name: str,
    sizes: Sizes,
    call: Callable[..., Any],
    tensors: list[Tensor],
    traffic: int,
    operations: int,
) -> Case:
    def listed(results: Any) -> Sequence[Tensor]:
        return [results] if isinstance(results, Tensor) else list(results)

    def compute() -> Sequence[Tensor]:
        with torch.no_grad():
            return listed(call(*tensors))

    def truth() -> Sequence[Tensor]:
        with using("reference"), torch.no_grad():
            return listed(call(*(t.to(sizes.precise) for t in tensors)))

    # The definition is already folded: reference and torch are one.
    variants = [v for v in standard_variants(compute, sizes.device, True) if not v.name.startswith("reference")]
    return Case(f"{name}, operator only", str(sizes), truth, variants, TOLERANCE[sizes.dtype], traffic, operations)


def _labels(sizes: Sizes, pixels: Tensor, vectors: Tensor) -> Case:
    """Labels alone: of the exact scores, those of the classes that were chosen are compared."""
    side, weight = sizes.size // 4, torch.ones(EMBED // 4, device=pixels.device)
    bias = torch.zeros_like(weight)

    def compute() -> Sequence[Tensor]:
        with torch.no_grad():
            return [classify_labels(pixels, weight, bias, vectors, (side, side), (4 * side, 4 * side))[0]]

    def exact() -> Tensor:
        with using("reference"), torch.no_grad():
            x, w, b, g = (t.to(sizes.precise) for t in (pixels, weight, bias, vectors))
            return classify(x, w, b, g, (side, side))

    variants = [v for v in standard_variants(compute, sizes.device, True) if not v.name.startswith("folded")]
    return Case(
        "classify labels, operator only",
        str(sizes),
        lambda: [exact().amax(1)],
        variants,
        TOLERANCE[sizes.dtype],
        bytes_moved=pixels.nbytes + 16 * sizes.batch * sizes.pixels,
        operations=2 * pixels.numel() * sizes.num_classes,
        judge=lambda labels: [exact().gather(1, labels[0].long().unsqueeze(1)).squeeze(1)],
    )
