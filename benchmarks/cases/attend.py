"""attend, inside an interaction of one look at the pixels and on its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2ls_fast.backends import backend as using
from d2ls_fast.benchmarks.cases.common import (
    EMBED,
    HEADS,
    TOLERANCE,
    Compute,
    Sizes,
    cases_for,
    random,
    standard_variants,
    under,
)
from d2ls_fast.benchmarks.harness import Case, Variant
from d2ls_fast.nn.cross_attention import CrossAttention
from d2ls_fast.nn.interaction import AlternatingCrossAttention, InteractionStage
from d2ls_fast.ops import attend


class _Sdpa(CrossAttention):
    """The unfolded cross-attention with PyTorch's fused attention kernel on the projected tensors."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (self._heads(p(t)) for p, t in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value)))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class _BareProducts(nn.Module):
    """Only the two matrix products that attend cannot do without, in the library's kernels: a floor, not a result."""

    def forward(self, query: Tensor, pixels: Tensor) -> Tensor:
        return query @ pixels.transpose(1, 2) @ pixels


def cases(sizes: Sizes) -> list[Case]:
    """attend inside the stage it serves: dictionary in, next dictionary out, projections and norm included."""
    generator = sizes.generator()
    torch.manual_seed(0)
    module = AlternatingCrossAttention(EMBED, HEADS, stages=1, alternating=False, final_attention=False)
    module = module.to(sizes.device, sizes.dtype)
    sdpa = copy.deepcopy(module)
    stage = cast("InteractionStage", sdpa.layers[0])
    stage.dictionary_attention = _Sdpa(EMBED, HEADS).to(sizes.device, sizes.dtype)
    sdpa.load_state_dict(module.state_dict())
    n, k, c = sizes.pixels, sizes.num_classes, EMBED
    j = HEADS * k
    pixel_pe = random(generator, sizes, n, c)
    inputs = [random(generator, sizes, sizes.batch, k, c), random(generator, sizes, sizes.batch, n, c)]
    rows = random(generator, sizes, sizes.batch, j, c) * c**-0.5

    def call(layer: nn.Module, dictionary: Tensor, pixels: Tensor) -> Sequence[Tensor]:
        return [layer(pixels, pixel_pe.to(pixels.dtype), dictionary)[0]]

    def bare(layer: nn.Module, query: Tensor, pixels: Tensor) -> Sequence[Tensor]:
        return [layer(query, pixels)]

    def extra(mode: Callable[..., Compute]) -> list[Variant]:
        return [
            Variant("reference with sdpa", under("reference", mode(sdpa, call, inputs))),
            Variant("floor: two bare products", mode(_BareProducts(), bare, [rows, inputs[1]]), checked=False),
        ]

    product = 2 * sizes.batch * n * j * c
    element = inputs[1].element_size()
    image, table = sizes.batch * n * c * element, n * c * element
    cases = cases_for(
        "attend",
        sizes,
        module,
        call,
        inputs,
        extra,
        forward_cost=(image + table, 2 * product),
        both_cost=(3 * image + 2 * table, 7 * product),
    )
    return [*cases, _bare_attend(sizes, inputs[1], pixel_pe, rows, product, image + table)]


def _bare_attend(sizes: Sizes, pixels: Tensor, pixel_pe: Tensor, rows: Tensor, product: int, traffic: int) -> Case:
    """The operator alone, without the folding around it, against the products alone."""

    def compute() -> Sequence[Tensor]:
        with torch.no_grad():
            return attend(pixels, pixel_pe, rows)

    def truth() -> Sequence[Tensor]:
        with using("reference"), torch.no_grad():
            return attend(pixels.double(), pixel_pe.double(), rows.double())

    floor = Variant("floor: two bare products", lambda: [rows @ pixels.transpose(1, 2) @ pixels], checked=False)
    # The definition of this operator is already folded: reference and torch are one.
    variants = [
        floor,
        *(v for v in standard_variants(compute, sizes.device, True) if not v.name.startswith("reference")),
    ]
    return Case("attend, operator only", str(sizes), truth, variants, TOLERANCE[sizes.dtype], traffic, 2 * product)
