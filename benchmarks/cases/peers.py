"""D2LS beside its peers on the same backbone: parameters, arithmetic, speed and memory of images to labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from d2ls_fast.backends import backend as using
from d2ls_fast.benchmarks.cases.common import TOLERANCE, Sizes, random, under
from d2ls_fast.benchmarks.harness import Case, Variant
from d2ls_fast.models.base import SegmentationModel
from d2ls_fast.models.build import PEER_OPTIONS, build_model
from d2ls_fast.ops.flops import count_flops


def peer_cases(sizes: Sizes) -> list[Case]:
    """One case: ``predict`` of every model, untrained; without ``transformers``, of D2LS and prototypes alone."""
    names = ["d2ls", *(name for name in PEER_OPTIONS if name == "prototype" or find_spec("transformers") is not None)]
    generator = sizes.generator(1)
    images = random(generator, sizes, sizes.batch, 3, sizes.size, sizes.size)
    variants = [_variant("d2ls, reference", "d2ls", images, sizes, "reference")]
    variants += [_variant("fused d2ls" if name == "d2ls" else name, name, images, sizes, "auto") for name in names]
    return [
        Case(
            f"peers on {sizes.backbone}, images to labels",
            str(sizes),
            lambda: [torch.ones(1, dtype=torch.float64)],
            variants,
            5 * TOLERANCE[sizes.dtype],  # as for the whole model
            images=sizes.batch,
        )
    ]


def _variant(label: str, name: str, images: Tensor, sizes: Sizes, backend: str) -> Variant:
    torch.manual_seed(0)
    options: dict[str, Any] = {"stages": sizes.stages} if name == "d2ls" else {}
    model = build_model(sizes.backbone, sizes.num_classes, name=name, **options)
    model = model.to(sizes.device, sizes.dtype).eval()
    run = under(backend, lambda: [model.predict(images)])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = {"M params": f"{parameters / 1e6:.2f}", "GFLOP": f"{count_flops(run) / len(images) / 1e9:.2f}"}
    return Variant(label, run, judge=_judge(model, images), facts=facts)


def _judge(model: SegmentationModel, images: Tensor) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    """How far the chosen classes are from the best ones: 1 - their largest shortfall in the float64 model's logits,
    relative to the largest of these. The labels themselves jump where two classes tie."""

    def judge(labels: Sequence[Tensor]) -> Sequence[Tensor]:
        with using("reference"), torch.no_grad():
            exact = copy.deepcopy(model).double()(images.double())
        chosen = exact.gather(1, labels[0].long().unsqueeze(1)).squeeze(1)
        return [1 - ((exact.amax(1) - chosen).max() / exact.abs().max()).view(1)]

    return judge
