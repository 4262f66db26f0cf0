"""The released model's head before and after patch(), whole and with one switch at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import d2ls_fast as d2
from d2ls_fast.benchmarks.cases.common import EMBED, HEADS, TOLERANCE, Compute, Sizes, forward, with_backward
from d2ls_fast.benchmarks.cases.head import feature_maps
from d2ls_fast.benchmarks.harness import Case, Variant
from d2ls_fast.benchmarks.official_structure import official_head

SWITCHES = ("interaction", "neck", "dictionary", "classification")


def cases(sizes: Sizes) -> list[Case]:
    """Four maps to logits in evaluation, and a training step's passes with the auxiliary branch."""
    channels = [96, 192, 384, 768]
    torch.manual_seed(0)
    options = {"embed_dim": EMBED, "num_heads": HEADS, "depth": sizes.stages}
    head = official_head(channels, sizes.num_classes, **options).to(sizes.device, sizes.dtype)
    maps = feature_maps(sizes.generator(), sizes, channels)
    return [
        _case("official head forward", sizes, head.eval(), forward, maps),
        _case("official head training, forward + backward", sizes, copy.deepcopy(head).train(), with_backward, maps),
    ]


def _case(name: str, sizes: Sizes, head: nn.Module, mode: Callable[..., Compute], maps: list[Tensor]) -> Case:
    def call(module: nn.Module, *inputs: Tensor) -> Sequence[Tensor]:
        output = module(inputs)
        return output if isinstance(output, tuple) else [output]

    def patched(*switches: str) -> Compute:
        return mode(d2.patch(copy.deepcopy(head), **{each: each in switches for each in SWITCHES}), call, maps)

    eager = mode(head, call, maps)
    variants = [Variant("official eager", eager)]
    variants.append(Variant("official compiled", torch.compile(mode(head, call, maps)), dispensable=True))
    variants += [Variant(f"patched, only {switch}", patched(switch)) for switch in SWITCHES]
    variants.append(Variant("fused: patched", patched(*SWITCHES)))
    truth = mode(copy.deepcopy(head).double(), call, [each.double() for each in maps])
    return Case(name, str(sizes), truth, variants, TOLERANCE[sizes.dtype])
