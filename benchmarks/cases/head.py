"""The interaction, the classifier, and the whole head from four feature maps to logits or labels."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from d2ls_fast.backends import backend as using
from d2ls_fast.benchmarks.cases.common import (
    EMBED,
    HEADS,
    TOLERANCE,
    Sizes,
    cases_for,
    fused_variants,
    random,
    standard_variants,
)
from d2ls_fast.benchmarks.harness import Case
from d2ls_fast.models.head import D2LSHead


def feature_maps(generator: torch.Generator, sizes: Sizes, channels: Sequence[int]) -> list[Tensor]:
    return [
        random(generator, sizes, sizes.batch, c, sizes.size // stride, sizes.size // stride)
        for c, stride in zip(channels, (4, 8, 16, 32), strict=True)
    ]


def head_cases(sizes: Sizes) -> list[Case]:
    """The interaction alone, the classifier alone, and the whole head from four feature maps to logits or labels."""
    generator = sizes.generator()
    torch.manual_seed(0)
    channels = [96, 192, 384, 768]
    head = D2LSHead(channels, sizes.num_classes, EMBED, HEADS, sizes.stages).to(sizes.device, sizes.dtype).eval()
    pixels = random(generator, sizes, sizes.batch, sizes.pixels, EMBED)
    dictionary = random(generator, sizes, sizes.batch, sizes.num_classes, EMBED)
    pixel_pe = head.positions(sizes.size // 4, sizes.size // 4).to(pixels.dtype)

    def interaction(module: nn.Module, pixels: Tensor, dictionary: Tensor) -> Sequence[Tensor]:
        return module(pixels, pixel_pe.to(pixels.dtype), dictionary)

    def classify(module: nn.Module, pixels: Tensor, dictionary: Tensor) -> Sequence[Tensor]:
        return [module(pixels, dictionary, (sizes.size // 4, sizes.size // 4))]

    def whole(module: nn.Module, *features: Tensor) -> Sequence[Tensor]:
        return [module(features).logits]

    image, logits = sizes.batch * sizes.pixels * EMBED, sizes.batch * sizes.num_classes * 16 * sizes.pixels
    traffic, product = image * pixels.element_size() + 4 * logits, 2 * image * sizes.num_classes
    stages, tokens, rows = sizes.stages, image * pixels.element_size(), 2 * image * HEADS * sizes.num_classes
    features = feature_maps(generator, sizes, channels)
    return [
        *cases_for(
            "interaction",
            sizes,
            head.interaction,
            interaction,
            [pixels, dictionary],
            # L + 1 reads and L writes of the pixels, the encoding beside every read; two products a look or an update.
            forward_cost=((2 * stages + 1) * tokens + (stages + 1) * pixel_pe.nbytes, (2 * stages + 1) * 2 * rows),
            # Backward: pixels and their gradient read, the gradient written; 5 products a look, 6 an update.
            both_cost=((5 * stages + 4) * tokens, (4 * stages + 2 + 5 * (stages + 1) + 6 * stages) * rows),
        ),
        *cases_for(
            "classify to logits",
            sizes,
            head.classifier,
            classify,
            [pixels, dictionary],
            forward_cost=(traffic, product),
            both_cost=(2 * traffic + image * pixels.element_size(), 4 * product),
        ),
        *cases_for("head to logits", sizes, head, whole, features),
        _head_to_labels(sizes, head, features),
    ]


def _head_to_labels(sizes: Sizes, head: D2LSHead, features: list[Tensor]) -> Case:
    """Feature maps to labels: the released way computes the logits and takes their arg-max; ours never has them.

    Labels jump where two classes tie, so what is compared is the exact logit of the class that was chosen.
    """

    @functools.cache
    def exact() -> Tensor:
        with using("reference"), torch.no_grad():
            logits: Tensor = copy.deepcopy(head).to(sizes.precise)([f.to(sizes.precise) for f in features]).logits
        return logits

    def by_logits() -> Sequence[Tensor]:
        with torch.no_grad():
            return [head(features).logits.argmax(1)]

    def directly() -> Sequence[Tensor]:
        with torch.no_grad():
            return [head.predict(features, (sizes.size, sizes.size), return_confidence=False)[0]]

    variants = [v for v in standard_variants(by_logits, sizes.device, True) if not v.name.startswith("fused")]
    variants += fused_variants(directly, sizes.device, inference=True)
    tolerance = TOLERANCE[sizes.dtype]
    return Case(
        "head to labels",
        str(sizes),
        lambda: [exact().amax(1)],
        variants,
        tolerance,
        judge=lambda labels: [exact().gather(1, labels[0].long().unsqueeze(1)).squeeze(1)],
    )
