"""The whole model: images to labels, and a training step."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from d2ls_fast.backends import backend as using
from d2ls_fast.benchmarks.cases.common import (
    TOLERANCE,
    Compute,
    Sizes,
    fused_variants,
    random,
    standard_variants,
    under,
)
from d2ls_fast.benchmarks.harness import Case, Variant
from d2ls_fast.models.model import D2LS, create_model
from d2ls_fast.nn.losses import D2LSLoss


def model_cases(sizes: Sizes) -> list[Case]:
    """Images to labels, the backbone included; the released way computes the logits and takes their arg-max."""
    model, images = _model(sizes)

    @functools.cache
    def exact() -> Tensor:
        with using("reference"), torch.no_grad():
            return copy.deepcopy(model).to(sizes.precise)(images.to(sizes.precise))

    def by_logits() -> Sequence[Tensor]:
        with torch.no_grad():
            return [model(images).argmax(1)]

    def backbone() -> Sequence[Tensor]:
        with torch.no_grad():
            return model.backbone(images)

    variants = [v for v in standard_variants(by_logits, sizes.device, True) if not v.name.startswith("fused")]
    variants += fused_variants(lambda: [model.predict(images)], sizes.device, inference=True)
    variants.append(Variant("backbone alone", backbone, checked=False))
    return [
        Case(
            f"model {sizes.backbone}, images to labels",
            str(sizes),
            lambda: [exact().amax(1)],
            variants,
            5 * TOLERANCE[sizes.dtype],  # the backbone's own rounding comes on top
            # Labels jump where two classes tie: the exact logit of the class that was chosen is what is compared.
            judge=lambda labels: [exact().gather(1, labels[0].long().unsqueeze(1)).squeeze(1)],
        )
    ]


def train_cases(sizes: Sizes) -> list[Case]:
    """One training step without the optimizer: forward, loss, backward."""
    model, images = _model(sizes)
    generator = sizes.generator(2)
    shape = (sizes.batch, sizes.size, sizes.size)
    target = torch.randint(0, sizes.num_classes, shape, generator=generator, device=sizes.device)
    criterion = D2LSLoss()

    def step(model: D2LS, images: Tensor, keep_logits: bool = True) -> Compute:
        def compute() -> Sequence[Tensor]:
            model.train()
            torch.manual_seed(3)
            total = criterion(model(images, keep_logits), target)[0]
            total.backward()
            model.zero_grad(set_to_none=True)
            return [total.detach()]

        return compute

    def truth() -> Sequence[Tensor]:
        return under("reference", step(copy.deepcopy(model).to(sizes.precise), images.to(sizes.precise)))()

    eager = [v for v in standard_variants(step(model, images)) if v.name.endswith("eager")]
    eager += fused_variants(step(model, images, keep_logits=False), sizes.device)
    tolerance = 5 * TOLERANCE[sizes.dtype]
    return [Case(f"training step {sizes.backbone}", str(sizes), truth, eager, tolerance)]


def _model(sizes: Sizes) -> tuple[D2LS, Tensor]:
    torch.manual_seed(0)
    model = create_model(sizes.backbone, sizes.num_classes, stages=sizes.stages)
    generator = sizes.generator()
    images = random(generator, sizes, sizes.batch, 3, sizes.size, sizes.size)
    return model.to(sizes.device, sizes.dtype).eval(), images
