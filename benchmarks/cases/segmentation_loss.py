"""segmentation_loss: refined pixels and class vectors to the losses of a labelled image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from d2ls_fast.benchmarks.cases.common import (
    EMBED,
    TOLERANCE,
    Compute,
    Sizes,
    definition,
    forward,
    fused_variants,
    random,
    standard_variants,
    under,
    with_backward,
)
from d2ls_fast.benchmarks.harness import Case, Variant
from d2ls_fast.nn.classifier import PixelClassifier
from d2ls_fast.nn.losses import D2LSLoss


def cases(sizes: Sizes) -> list[Case]:
    """Cross-entropy and dice from the last pixels; the baselines keep the logits, as the released model does."""
    generator = sizes.generator()
    torch.manual_seed(0)
    module = PixelClassifier(sizes.num_classes, EMBED).to(sizes.device, sizes.dtype)
    criterion = D2LSLoss().to(sizes.device)
    b, k, side = sizes.batch, sizes.num_classes, sizes.size // 4
    inputs = [random(generator, sizes, b, side * side, EMBED), random(generator, sizes, b, k, EMBED)]
    target = torch.randint(0, k, (b, 4 * side, 4 * side), generator=generator, device=sizes.device)
    labelled = torch.rand(target.shape, generator=generator, device=sizes.device) > 0.1
    target = target.where(labelled, criterion.ignore_index)

    # Loss scaling, as half-precision training has it: a pixel's share of a mean would underflow in float16.
    def kept(layer: PixelClassifier, pixels: Tensor, dictionary: Tensor) -> Sequence[Tensor]:
        return [1024 * criterion(layer(pixels, dictionary, (side, side)), target)[0]]

    def fused(layer: PixelClassifier, pixels: Tensor, dictionary: Tensor) -> Sequence[Tensor]:
        return [1024 * criterion(layer.scores(pixels, dictionary, (side, side)), target)[0]]

    def case(suffix: str, mode: Callable[..., Compute], images: int, products: int, passes: int) -> Case:
        on_logits = mode(module, kept, inputs)
        variants = [
            *(v for v in standard_variants(on_logits) if v.name != "fused"),
            Variant("classify fused, losses on its logits", under("auto", on_logits)),
            *fused_variants(mode(module, fused, inputs), sizes.device, inference=mode is forward),
        ]
        truth = definition(mode, module, kept, inputs, sizes)
        traffic = images * pixels.numel() * pixels.element_size() + passes * target.numel() * target.element_size()
        name, tolerance = f"segmentation loss {suffix}", TOLERANCE[sizes.dtype]
        return Case(name, str(sizes), truth, variants, tolerance, traffic, products * product)

    pixels, product = inputs[0], 2 * target.numel() * k * EMBED // 16
    return [case("forward", forward, 1, 1, 1), case("forward + backward", with_backward, 3, 4, 2)]
