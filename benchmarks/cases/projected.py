"""Both forms of the interaction against each other, on both sides of the number of entries where the choice changes."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from d2ls_fast.benchmarks.cases.common import (
    EMBED,
    HEADS,
    TOLERANCE,
    Sizes,
    forward,
    random,
    under,
    with_backward,
)
from d2ls_fast.benchmarks.harness import Case, Variant
from d2ls_fast.nn.cost import costs, projecting_pays
from d2ls_fast.nn.interaction import AlternatingCrossAttention, Form


def cases(sizes: Sizes) -> list[Case]:
    """The whole interaction; the setting names the form that the cost model chooses.

    The projected form under the back end ``torch`` is the released order of operations with PyTorch's attention kernel.
    """
    generator = sizes.generator()
    torch.manual_seed(0)
    module = AlternatingCrossAttention(EMBED, HEADS, sizes.stages).to(sizes.device, sizes.dtype)
    pixels = random(generator, sizes, sizes.batch, sizes.pixels, EMBED)
    pixel_pe = random(generator, sizes, sizes.pixels, EMBED)
    dictionary = random(generator, sizes, sizes.batch, sizes.num_classes, EMBED)

    def call(module: nn.Module, pixels: Tensor, dictionary: Tensor) -> Sequence[Tensor]:
        return module(pixels, pixel_pe.to(pixels.dtype), dictionary)

    def with_form(form: Form) -> AlternatingCrossAttention:
        other = copy.deepcopy(module)
        other.form = form
        return other

    folded, projected, precise = with_form("folded"), with_form("projected"), copy.deepcopy(module).double()
    wide = [pixels.double(), dictionary.double()]
    chosen = projecting_pays(EMBED, EMBED // 2, HEADS, sizes.num_classes, costs(sizes.device, sizes.dtype))
    setting = f"{sizes}, chosen: {'projected' if chosen else 'folded'}"
    result = []
    for suffix, mode in (("forward", forward), ("forward + backward", with_backward)):
        variants = [
            Variant("reference eager", under("reference", mode(module, call, [pixels, dictionary]))),
            Variant("reference with sdpa", under("torch", mode(projected, call, [pixels, dictionary]))),
            Variant("fused, folded", under("auto", mode(folded, call, [pixels, dictionary]))),
            Variant("fused, projected", under("auto", mode(projected, call, [pixels, dictionary]))),
        ]
        truth = under("reference", mode(precise, call, wide))
        result.append(Case(f"folded or projected, {suffix}", setting, truth, variants, TOLERANCE[sizes.dtype]))
    return result
