"""The head in training, feature maps to the loss and back: both dictionaries over the same pixels, and no logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from d2ls_fast.benchmarks.cases.common import (
    EMBED,
    HEADS,
    TOLERANCE,
    Compute,
    Sizes,
    definition,
    fused_variants,
    random,
    under,
    with_backward,
)
from d2ls_fast.benchmarks.harness import Case, Variant
from d2ls_fast.models.head import D2LSHead, D2LSOutput
from d2ls_fast.nn.losses import D2LSLoss

CHANNELS = (96, 192, 384, 768)


def cases(sizes: Sizes) -> list[Case]:
    """The baseline is the release's way: one interaction after the other, both logits kept, the loss from those."""
    generator = sizes.generator()
    torch.manual_seed(0)
    head = D2LSHead(CHANNELS, sizes.num_classes, EMBED, HEADS, sizes.stages, contrastive=False)
    head = head.to(sizes.device, sizes.dtype).train()
    strides = (4, 8, 16, 32)
    features = [
        random(generator, sizes, sizes.batch, c, sizes.size // stride, sizes.size // stride)
        for c, stride in zip(CHANNELS, strides, strict=True)
    ]
    shape = (sizes.batch, sizes.size, sizes.size)
    target = torch.randint(0, sizes.num_classes, shape, generator=generator, device=sizes.device)
    criterion = D2LSLoss()

    def to_the_loss(output: Callable[..., D2LSOutput]) -> Callable[..., Sequence[Tensor]]:
        return lambda head, *maps: [criterion(output(head, maps), target)[0]]

    def way(output: Callable[..., D2LSOutput]) -> Compute:
        return with_backward(head, to_the_loss(output), features)

    kept, fused = way(lambda head, maps: head(maps)), way(lambda head, maps: head(maps, keep_logits=False))
    variants = [
        Variant("reference eager", under("reference", way(_two_interactions))),
        Variant("folded eager", under("torch", kept)),
        Variant("fused, two interactions", under("auto", way(_two_interactions))),
        Variant("fused, logits kept", under("auto", kept)),
        *fused_variants(fused, sizes.device),
    ]
    truth = definition(with_backward, head, to_the_loss(_two_interactions), features, sizes)
    # The gradient passes through every part, each of which rounds: in half precision that adds up.
    tolerance = TOLERANCE[sizes.dtype] * (1 if sizes.dtype == torch.float32 else 3)
    return [Case("training head to the loss, forward + backward", str(sizes), truth, variants, tolerance)]


def _two_interactions(head: D2LSHead, maps: Sequence[Tensor]) -> D2LSOutput:
    height, width = maps[0].shape[-2:]
    pixels = head.neck(maps)
    pixel_pe = head.positions(height, width).to(pixels.dtype)
    logits = []
    for start in (head.dictionary.dynamic(maps[-1]), head.dictionary.static(pixels.shape[0])):
        dictionary, refined = head.interaction(pixels, pixel_pe, start)
        logits.append(head.classifier(refined, dictionary, (height, width)))
    return D2LSOutput(logits[0], logits[1], dictionary, refined, None)
