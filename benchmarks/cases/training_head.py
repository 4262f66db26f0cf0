"""The head in training: the dynamic and the static dictionary over the same pixels, in one interaction or in two."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from d2ls_fast.benchmarks.cases.common import EMBED, HEADS, TOLERANCE, Sizes, random, under, with_backward
from d2ls_fast.benchmarks.harness import Case, Variant
from d2ls_fast.models.head import D2LSHead

CHANNELS = (96, 192, 384, 768)


def cases(sizes: Sizes) -> list[Case]:
    """Feature maps to both logits and back; the baseline is the release's way, one interaction after the other."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    head = D2LSHead(CHANNELS, sizes.num_classes, EMBED, HEADS, sizes.stages, contrastive=False)
    head = head.to(sizes.device, sizes.dtype).train()
    strides = (4, 8, 16, 32)
    features = [
        random(generator, sizes, sizes.batch, c, sizes.size // stride, sizes.size // stride)
        for c, stride in zip(CHANNELS, strides, strict=True)
    ]
    precise, wide = copy.deepcopy(head).double(), [f.double() for f in features]
    one, two = with_backward(head, _one_interaction, features), with_backward(head, _two_interactions, features)
    variants = [
        Variant("reference eager, two interactions", under("reference", two)),
        Variant("folded eager, two interactions", under("torch", two)),
        Variant("folded eager", under("torch", one)),
        Variant("fused, two interactions", under("auto", two)),
        Variant("fused", under("auto", one)),
    ]
    truth = under("reference", with_backward(precise, _two_interactions, wide))
    return [Case("training head forward + backward", str(sizes), truth, variants, TOLERANCE[sizes.dtype])]


def _one_interaction(head: D2LSHead, *features: Tensor) -> Sequence[Tensor]:
    out = head(features)
    assert out.aux_logits is not None
    return [out.logits, out.aux_logits]


def _two_interactions(head: D2LSHead, *features: Tensor) -> Sequence[Tensor]:
    height, width = features[0].shape[-2:]
    pixels = head.neck(features)
    pixel_pe = head.positions(height, width).to(pixels.dtype)
    logits = []
    for start in (head.dictionary.dynamic(features[-1]), head.dictionary.static(pixels.shape[0])):
        dictionary, refined = head.interaction(pixels, pixel_pe, start)
        logits.append(head.classifier(refined, dictionary, (height, width)))
    return logits
