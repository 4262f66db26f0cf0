"""The whole model: images to labels, and a training step."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from d2ls_fast.benchmarks.cases.common import TOLERANCE, Compute, Sizes, forward, standard_variants, under
from d2ls_fast.benchmarks.harness import Case, Variant
from d2ls_fast.models.model import D2LS, create_model
from d2ls_fast.nn.losses import D2LSLoss


def model_cases(sizes: Sizes) -> list[Case]:
    """Images to labels, the backbone included."""
    model, images = _model(sizes)

    def predict(module: D2LS, images: Tensor) -> Sequence[Tensor]:
        # Labels jump where two classes tie, so the scores themselves are what is compared.
        return [module(images)]

    compute = forward(model, predict, [images])
    precise = copy.deepcopy(model).double()
    truth = under("reference", forward(precise, predict, [images.double()]))
    tolerance = 5 * TOLERANCE[sizes.dtype]  # the backbone's own rounding comes on top
    return [Case(f"model {sizes.backbone}, images to logits", str(sizes), truth, standard_variants(compute), tolerance)]


def train_cases(sizes: Sizes) -> list[Case]:
    """One training step without the optimizer: forward, loss, backward."""
    model, images = _model(sizes)
    generator = torch.Generator().manual_seed(2)
    target = torch.randint(0, sizes.num_classes, (sizes.batch, sizes.size, sizes.size), generator=generator)
    target = target.to(sizes.device)
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

    precise = copy.deepcopy(model).double()
    truth = under("reference", step(precise, images.double()))
    eager = [v for v in standard_variants(step(model, images)) if v.name.endswith("eager")]
    eager.append(Variant("fused", under("auto", step(model, images, keep_logits=False))))
    tolerance = 5 * TOLERANCE[sizes.dtype]
    return [Case(f"training step {sizes.backbone}", str(sizes), truth, eager, tolerance)]


def _model(sizes: Sizes) -> tuple[D2LS, Tensor]:
    torch.manual_seed(0)
    model = create_model(sizes.backbone, sizes.num_classes, stages=sizes.stages)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(sizes.batch, 3, sizes.size, sizes.size, generator=generator)
    return model.to(sizes.device, sizes.dtype).eval(), images.to(sizes.device, sizes.dtype)
