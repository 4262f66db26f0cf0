"""The whole model: images to labels, and a training step."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from d2ls_fast.backends import backend as using
from d2ls_fast.benchmarks.cases.common import TOLERANCE, Compute, Sizes, standard_variants, under
from d2ls_fast.benchmarks.harness import Case, Variant
from d2ls_fast.models.model import D2LS, create_model
from d2ls_fast.nn.losses import D2LSLoss


def model_cases(sizes: Sizes) -> list[Case]:
    """Images to labels, the backbone included; the released way computes the logits and takes their arg-max."""
    model, images = _model(sizes)
    with using("reference"), torch.no_grad():
        exact = copy.deepcopy(model).double()(images.double())

    def by_logits() -> Sequence[Tensor]:
        with torch.no_grad():
            return [model(images).argmax(1)]

    variants = [v for v in standard_variants(by_logits) if v.name != "fused"]
    variants.append(Variant("fused", under("auto", lambda: [model.predict(images)])))
    return [
        Case(
            f"model {sizes.backbone}, images to labels",
            str(sizes),
            lambda: [exact.amax(1)],
            variants,
            5 * TOLERANCE[sizes.dtype],  # the backbone's own rounding comes on top
            # Labels jump where two classes tie: the exact logit of the class that was chosen is what is compared.
            judge=lambda labels: [exact.gather(1, labels[0].long().unsqueeze(1)).squeeze(1)],
        )
    ]


def train_cases(sizes: Sizes) -> list[Case]:
    """One training step without the optimizer: forward, loss, backward."""
    model, images = _model(sizes)
    generator = torch.Generator().manual_seed(2)
    target = torch.randint(0, sizes.num_classes, (sizes.batch, sizes.size, sizes.size), generator=generator)
    target = target.to(sizes.device)
    criterion = D2LSLoss()

    def step(model: D2LS, images: Tensor) -> Compute:
        def compute() -> Sequence[Tensor]:
            model.train()
            torch.manual_seed(3)
            total = criterion(model(images), target)[0]
            total.backward()
            model.zero_grad(set_to_none=True)
            return [total.detach()]

        return compute

    precise = copy.deepcopy(model).double()
    truth = under("reference", step(precise, images.double()))
    compute = step(model, images)
    eager = [v for v in standard_variants(compute) if "compiled" not in v.name]
    tolerance = 5 * TOLERANCE[sizes.dtype]
    return [Case(f"training step {sizes.backbone}", str(sizes), truth, eager, tolerance)]


def _model(sizes: Sizes) -> tuple[D2LS, Tensor]:
    torch.manual_seed(0)
    model = create_model(sizes.backbone, sizes.num_classes, stages=sizes.stages)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(sizes.batch, 3, sizes.size, sizes.size, generator=generator)
    return model.to(sizes.device, sizes.dtype).eval(), images.to(sizes.device, sizes.dtype)
