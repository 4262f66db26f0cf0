"""The neck: linear layers, upsampling and fusing convolution composed, every product at its level's own size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2ls_fast.models.patching.fast import Fast
from d2ls_fast.models.patching.structure import StandIn, is_linear, part
from d2ls_fast.nn.pyramid import PyramidNeck

_MAPS = "multi_scale_features"


class FastNeck(Fast):
    """The whole model, between its ``backbone`` and its ``decoder``.

    The maps are collected by hooks in ``multi_scale_features``; without such a list they are what the backbone returns,
    and without a backbone they are the model's argument. Encoding and decoder are called as they are.
    """

    switch = "neck"

    @classmethod
    def find(cls, module: nn.Module) -> str | bool:
        levels, fuse = part(module, "linear_c"), part(module, "aggregator")
        if not isinstance(levels, nn.ModuleList) or not len(levels):
            return False
        missing = [name for name in ("aggregator", "pe_layer", "decoder") if part(module, name) is None]
        if missing:
            return f"it has no {missing[0]}"
        projections = [part(level, "proj") for level in levels]
        if not all(is_linear(each) for each in projections):
            return "its linear_c are not linear layers proj with a bias"
        channels = {each.out_features for each in cast("list[nn.Linear]", projections)}
        if not isinstance(fuse, nn.Conv2d) or type(fuse).forward is not nn.Conv2d.forward:
            return "its aggregator is no convolution"
        if len(channels) > 1 or tuple(fuse.weight.shape) != (min(channels), len(levels) * min(channels), 1, 1):
            return "its aggregator is no 1x1 convolution from all levels to one of their width"
        return True

    @classmethod
    def example(cls, module: nn.Module, random: Callable[..., Tensor]) -> Sequence[Any]:
        widths = [each.in_features for each in _projections(module)]
        maps = [random(2, width, 9 // (i + 1), 13 // (i + 1)) for i, width in enumerate(widths)]
        if part(module, "backbone") is None:
            return (maps,)
        cast("list[Tensor]", module.backbone.maps).extend(maps)  # type: ignore[union-attr]
        return (random(2, 3, 36, 52),)

    @classmethod
    def stand_ins(cls, module: nn.Module) -> dict[int, Any]:
        channels = _projections(module)[0].out_features

        def encoding(size: Sequence[int]) -> Tensor:
            return torch.arange(channels * size[0] * size[1]).double().sin().view(channels, *size)

        def given(*arguments: Any) -> Any:
            return arguments

        pe_layer, decoder = module.get_submodule("pe_layer"), module.get_submodule("decoder")
        stand_ins: dict[int, Any] = {
            id(pe_layer): StandIn(pe_layer, encoding),
            id(decoder): StandIn(decoder, given),
        }
        backbone, collected = part(module, "backbone"), module.__dict__.get(_MAPS)
        if backbone is not None:
            stand_in = _MapsInstead(collects=collected is not None)
            stand_ins[id(backbone)] = stand_in
            if collected is not None:
                stand_ins[id(collected)] = stand_in.collected
        return stand_ins

    @classmethod
    def bypassed(cls, module: nn.Module) -> tuple[nn.Module, ...]:
        return (*module.get_submodule("linear_c").modules(), module.get_submodule("aggregator"))

    @classmethod
    def keep(cls, module: nn.Module) -> PyramidNeck:
        """Our module around the same linear layers and convolution."""
        projections = _projections(module)
        with torch.device("meta"):
            ours = PyramidNeck([each.in_features for each in projections], projections[0].out_features)
        ours.projections = nn.ModuleList(projections)
        ours.fuse = cast(nn.Linear, _AsLinear(cast(nn.Conv2d, module.aggregator)))
        return ours

    def forward(self, x: Any) -> Any:
        """What the backbone takes -> what the decoder gives."""
        if not self.as_found():
            return super().forward(x)
        maps = self._maps(x)
        size = tuple(maps[0].shape[2:])
        fused = self._fast_kept(maps).transpose(1, 2).unflatten(2, size)
        image_pe = cast(nn.Module, self.pe_layer)(size).unsqueeze(0)
        return cast(nn.Module, self.decoder)(fused, image_pe, maps[-1])

    def _maps(self, x: Any) -> Sequence[Tensor]:
        backbone, collected = part(self, "backbone"), self.__dict__.get(_MAPS)
        if backbone is None:
            return cast("Sequence[Tensor]", x)
        if collected is None:
            return cast("Sequence[Tensor]", backbone(x))
        collected.clear()
        backbone(x)
        return cast("Sequence[Tensor]", collected)


class _AsLinear(nn.Module):
    """A 1x1 convolution as the linear layer it is."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    @property
    def weight(self) -> Tensor:
        return self.convolution.weight.flatten(1)

    @property
    def bias(self) -> Tensor | None:
        return self.convolution.bias

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens, self.weight, self.bias)


class _MapsInstead(nn.Module):
    """Stands for the backbone while results are compared: returns ``maps``, or appends them to ``collected``."""

    def __init__(self, collects: bool) -> None:
        super().__init__()
        self.collects = collects
        self.maps: list[Tensor] = []
        self.collected: list[Tensor] = []

    def forward(self, x: Any) -> Any:
        if not self.collects:
            return self.maps
        self.collected.extend(self.maps)
        return self.maps[-1]


def _projections(module: nn.Module) -> list[nn.Linear]:
    return [cast(nn.Linear, level.get_submodule("proj")) for level in cast(nn.ModuleList, module.linear_c)]
