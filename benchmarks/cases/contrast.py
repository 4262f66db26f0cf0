"""The contrastive losses: pixel_dictionary_nce in its default and in both directions, and ratio_contrast."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from d2ls_fast.benchmarks.cases.common import (
    EMBED,
    TOLERANCE,
    Sizes,
    definition,
    forward,
    random,
    standard_variants,
    with_backward,
)
from d2ls_fast.benchmarks.harness import Case
from d2ls_fast.nn.contrast import PixelDictionaryInfoNCE, RatioContrastiveLoss


def cases(sizes: Sizes) -> list[Case]:
    generator = sizes.generator()
    n, k, c = sizes.pixels, sizes.num_classes, EMBED
    target = torch.randint(0, k, (sizes.batch, n), generator=generator, device=sizes.device)
    dictionary = random(generator, sizes, sizes.batch, k, c)
    # Features near their entry, as in training: gradients of random ones would cancel to rounding errors.
    own = dictionary.gather(1, target.unsqueeze(-1).expand(-1, -1, c))
    pixels = own + 2 * random(generator, sizes, sizes.batch, n, c)
    image, product = sizes.batch * n * c * pixels.element_size(), 2 * sizes.batch * n * k * c

    def nce(module: nn.Module, pixels: Tensor, dictionary: Tensor) -> Sequence[Tensor]:
        return [module(pixels, dictionary, target)]

    def ratio(module: nn.Module, dictionary: Tensor) -> Sequence[Tensor]:
        return [module(dictionary)]

    costs = ((image, product), (3 * image, 4 * product))
    return [
        *_cases("nce", sizes, PixelDictionaryInfoNCE(), nce, [pixels, dictionary], costs),
        *_cases("nce both ways", sizes, PixelDictionaryInfoNCE(direction="both"), nce, [pixels, dictionary], costs),
        *_cases("ratio", sizes, RatioContrastiveLoss(), ratio, [random(generator, sizes, 8, k, c)], ((0, 0), (0, 0))),
    ]


def _cases(
    name: str,
    sizes: Sizes,
    module: nn.Module,
    call: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    costs: tuple[tuple[int, int], tuple[int, int]],
) -> list[Case]:
    """A forward and a forward + backward case; the definition has no folded form."""
    built = []
    for suffix, mode, cost in zip(("forward", "forward + backward"), (forward, with_backward), costs, strict=True):
        variants = standard_variants(mode(module, call, inputs), sizes.device, inference=mode is forward)
        variants = [v for v in variants if not v.name.startswith("folded")]
        truth = definition(mode, module, call, inputs, sizes)
        built.append(Case(f"{name} {suffix}", str(sizes), truth, variants, TOLERANCE[sizes.dtype], *cost))
    return built
