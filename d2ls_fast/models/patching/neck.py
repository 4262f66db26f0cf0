"""The neck: linear layers, upsampling and fusing convolution composed, every product at its level's own size.

What lies between these parts, and what follows, is the model's own ``forward``, in which forks differ most. It stays:
while it runs, the linear layers hand out tensors without memory (device ``meta``) and the convolution computes the
whole from the maps that they were given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2ls_fast.models.patching.fast import Fast, swap
from d2ls_fast.models.patching.structure import StandIn, is_linear, part
from d2ls_fast.nn.pyramid import PyramidNeck

_COLLECTED = "multi_scale_features"


class FastNeck(Fast):
    """The whole model, with ``linear_c`` and ``aggregator``."""

    switch = "neck"

    @classmethod
    def find(cls, module: nn.Module) -> str | bool:
        levels, fuse = part(module, "linear_c"), part(module, "aggregator")
        if not isinstance(levels, nn.ModuleList) or not len(levels):
            return False
        if fuse is None:
            return "it has no aggregator"
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
        backbone = part(module, "backbone")
        if backbone is None:
            return (maps,)
        cast(_MapsInstead, backbone).maps.extend(maps)
        return (random(2, 3, 36, 52),)

    @classmethod
    def stand_ins(cls, module: nn.Module) -> dict[int, Any]:
        """The maps come from a list that hooks on the backbone fill, from the backbone, or are the model's argument."""
        channels, stand_ins = _projections(module)[0].out_features, dict[int, Any]()

        def encoding(size: Sequence[int]) -> Tensor:
            return torch.arange(channels * size[0] * size[1]).double().sin().view(channels, *size)

        backbone, collected = part(module, "backbone"), module.__dict__.get(_COLLECTED)
        pe_layer = part(module, "pe_layer")
        if pe_layer is not None:
            stand_ins[id(pe_layer)] = StandIn(pe_layer, encoding)  # the release's computes in float32 alone
        if backbone is not None:
            stand_ins[id(backbone)] = stand_in = _MapsInstead(collects=collected is not None)
            if collected is not None:
                stand_ins[id(collected)] = stand_in.collected
        return stand_ins

    @classmethod
    def bypassed(cls, module: nn.Module) -> tuple[nn.Module, ...]:
        return (*module.get_submodule("linear_c").modules(), module.get_submodule("aggregator"))

    @classmethod
    def keep(cls, module: nn.Module) -> _Maps:
        """Our module around the same linear layers and convolution, and a place for the maps."""
        projections, fuse = _projections(module), cast(nn.Conv2d, module.aggregator)
        with torch.device("meta"):
            ours = PyramidNeck([each.in_features for each in projections], projections[0].out_features)
        ours.projections = nn.ModuleList(projections)
        ours.fuse = cast(nn.Linear, _AsLinear(fuse))
        return _Maps(ours)

    @classmethod
    def swap_parts(cls, module: nn.Module, kept: _Maps) -> None:
        for index, level in enumerate(cast(nn.ModuleList, module.linear_c)):
            swap(level, _FastLevel)
            level.__dict__["_fast_kept"] = (kept, index)
        swap(cast(nn.Module, module.aggregator), _FastFuse)
        cast(nn.Module, module.aggregator).__dict__["_fast_kept"] = kept

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """The model's own, with fast parts."""
        maps: _Maps = self._fast_kept
        maps.wanted = self.as_found()
        try:
            return super().forward(*arguments, **named)
        finally:
            maps.wanted = False
            maps.given.clear()


class _Maps:
    """The maps that the linear layers were given in the call that is running; wanted only while there is one."""

    def __init__(self, neck: PyramidNeck) -> None:
        self.neck = neck
        self.wanted = False
        self.given: dict[int, Tensor] = {}


class _FastLevel(Fast):
    """One of ``linear_c``: ``[B, c, h, w]`` -> ``[B, h * w, C]``, of which only the shape is made."""

    switch = "neck"

    def forward(self, feature: Tensor) -> Any:
        maps, index = self._fast_kept
        if not maps.wanted:
            return super().forward(feature)
        maps.given[index] = feature
        images, _, height, width = feature.shape
        channels = maps.neck.projections[index].out_features
        return torch.empty(images, height * width, channels, dtype=feature.dtype, device="meta")


class _FastFuse(Fast):
    """``aggregator``: computes the neck from the maps where it is given a tensor without memory."""

    switch = "neck"

    def forward(self, input: Tensor) -> Tensor:
        maps: _Maps = self._fast_kept
        if not maps.wanted or input.device.type != "meta":
            return cast(Tensor, super().forward(input))
        given = [maps.given[index] for index in range(len(maps.neck.projections))]
        fused: Tensor = maps.neck(given)
        return fused.transpose(1, 2).unflatten(2, tuple(given[0].shape[2:]))


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
