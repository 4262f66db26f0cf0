"""A small model of the released structure, and its results to compare before and after patch()."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import d2ls_fast as d2
from d2ls_fast.benchmarks.official_structure import OfficialStructure, official_head

CHANNELS = (4, 6, 8, 10)
WHERE = {"interaction": "decoder.interactor", "neck": "", "dictionary": "decoder.token", "classification": "decoder"}


def tiny(**options: Any) -> OfficialStructure:
    torch.manual_seed(0)
    return official_head(CHANNELS, 3, **{"embed_dim": 32, "num_heads": 2, "depth": 2, **options})


def maps(seed: int = 0, batch: int = 2, channels: Sequence[int] = CHANNELS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((12, 20), (6, 10), (3, 5), (2, 3))
    return [torch.randn(batch, c, *size, generator=generator) for c, size in zip(channels, sizes, strict=True)]


def only(model: Any, names: set[str]) -> Any:
    return d2.patch(model, **{name: name in names for name in WHERE})


def scalar(output: Any) -> Tensor:
    """A loss that weighs every logit differently."""
    tensors = output if isinstance(output, tuple) else (output,)
    return sum((each.float() * torch.linspace(0.5, 1.5, each.numel()).view_as(each)).mean() for each in tensors)  # type: ignore[return-value]


def results(model: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Outputs, and gradients of the maps and of every parameter that has one."""
    leaves = [each.detach().clone().requires_grad_() for each in inputs]
    model.zero_grad(set_to_none=True)
    output = model(leaves)
    (scalar(output) + scalar(tuple(each.square() for each in output) if model.training else output.square())).backward()
    outputs = output if isinstance(output, tuple) else (output,)
    found = {f"output {i}": each.detach() for i, each in enumerate(outputs)}
    found |= {f"map {i}": each.grad for i, each in enumerate(leaves) if each.grad is not None}
    return found | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert list(got) == list(wanted)
    # A bias of keys has no influence: its gradient is rounding, there and here.
    scale = max(float(value.norm()) for key, value in wanted.items() if "output" not in key)
    errors = {}
    for key, value in wanted.items():
        assert got[key].shape == value.shape and got[key].dtype == value.dtype, key
        size = float(value.norm())
        errors[key] = float((got[key].double() - value.double()).norm()) / (scale if "k_proj.bias" in key else size)
    assert {key: error for key, error in errors.items() if not error <= tolerance} == {}
