"""The interaction: all its layers and the last look, in L + 1 passes over the pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from d2ls_fast.models.patching.fast import Fast
from d2ls_fast.models.patching.structure import autocast_dtype, is_layer_norm, is_linear, part
from d2ls_fast.nn.cross_attention import CrossAttention
from d2ls_fast.nn.interaction import AlternatingCrossAttention, InteractionStage

_LOOK, _UPDATE, _LAST = "cross_attn_token_to_image", "cross_attn_image_to_token", "final_attn_token_to_image"
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class FastInteraction(Fast):
    """``interactor``: the released names in each of ``layers``, then the last look and its norm."""

    switch = "interaction"

    @classmethod
    def find(cls, module: nn.Module) -> str | bool:
        layers = part(module, "layers")
        if not isinstance(layers, nn.ModuleList) or not any(part(layer, _LOOK) for layer in layers):
            return False
        if part(module, "layer_norm_final_attn") is not None:  # FastTwoWay's
            return False
        norm = part(module, "norm_final_attn")
        if not isinstance(norm, nn.LayerNorm) or part(module, _LAST) is None:
            return f"it has no {_LAST} followed by norm_final_attn"
        channels, sizes = norm.normalized_shape[-1], set()
        for name, attention, normed in _steps(module):
            if attention is None or not is_layer_norm(normed, channels):
                return f"{name} is missing, or is not followed by a LayerNorm over {channels} channels"
            size = _size(attention, channels)
            if size is None:
                return f"{name} is not four linear layers from and to {channels} channels with num_heads beside them"
            sizes.add(size)
        if len(sizes) > 1:
            return "its attentions differ in width or in number of heads"
        return True

    @classmethod
    def example(cls, module: nn.Module, random: Callable[..., Tensor]) -> Sequence[Any]:
        channels = cast(nn.LayerNorm, module.norm_final_attn).normalized_shape[0]
        return random(2, channels, 2, 3), random(1, channels, 2, 3).expand(2, -1, -1, -1), random(2, 3, channels)

    @classmethod
    def keep(cls, module: nn.Module) -> AlternatingCrossAttention:
        """Our module around the same linear layers and norms."""
        steps = _steps(module)
        channels = cast(nn.LayerNorm, module.norm_final_attn).normalized_shape[0]
        rate, heads = cast("tuple[int, int]", _size(cast(nn.Module, steps[0][1]), channels))
        with torch.device("meta"):
            ours = AlternatingCrossAttention(channels, heads, len(cast(nn.ModuleList, module.layers)), rate)
        for stage, layer in zip(ours.layers, cast(nn.ModuleList, module.layers), strict=True):
            stage = cast(InteractionStage, stage)
            _share(stage.dictionary_attention, layer.get_submodule(_LOOK))
            _share(cast(CrossAttention, stage.pixel_attention), layer.get_submodule(_UPDATE))
            stage.dictionary_norm, stage.pixel_norm = layer.norm2, layer.norm4  # type: ignore[assignment]
        _share(cast(CrossAttention, ours.final_attention), module.get_submodule(_LAST))
        ours.final_norm = module.norm_final_attn  # type: ignore[assignment]
        return ours

    def forward(self, image_embedding: Tensor, image_pe: Tensor, point_embedding: Tensor) -> Any:
        """Pixels and their encoding ``[B, C, h, w]``, dictionary ``[B, K, C]`` -> ``[B, K, C]`` and ``[B, N, C]``."""
        images = image_embedding.shape[0]
        usual = image_embedding.dim() == image_pe.dim() == 4 and point_embedding.shape[0] == images
        if not usual or image_pe.shape[0] not in (1, images) or not self.as_found():
            return super().forward(image_embedding, image_pe, point_embedding)
        pixels, pixel_pe = (maps.flatten(2).transpose(1, 2) for maps in (image_embedding, image_pe))
        if images == 1 or image_pe.shape[0] == 1 or image_pe.stride(0) == 0:
            pixel_pe = pixel_pe[0]  # one encoding for all images is read once
        norm = cast(nn.LayerNorm, self.norm_final_attn)
        start = point_embedding.to(torch.promote_types(point_embedding.dtype, norm.weight.dtype))
        dictionary, refined = cast(AlternatingCrossAttention, self._fast_kept)(pixels, pixel_pe, start)
        return dictionary.to(_dtype(norm, point_embedding)), refined.to(_dtype(norm, image_embedding))


def _steps(module: nn.Module) -> list[tuple[str, nn.Module | None, nn.Module | None]]:
    """Every attention with its name and the norm after it."""
    steps = [
        (f"layers.{index}.{name}", part(layer, name), part(layer, norm))
        for index, layer in enumerate(cast(nn.ModuleList, module.layers))
        for name, norm in ((_LOOK, "norm2"), (_UPDATE, "norm4"))
    ]
    return [*steps, (_LAST, part(module, _LAST), part(module, "norm_final_attn"))]


def _size(attention: nn.Module, channels: int) -> tuple[int, int] | None:
    """By how much an attention is narrower than the channels, and its number of heads; None if it is no attention."""
    linears = [part(attention, name) for name in _PROJECTIONS]
    heads = getattr(attention, "num_heads", None)
    if not all(is_linear(each) for each in linears) or not isinstance(heads, int) or heads < 1:
        return None
    width = cast(nn.Linear, linears[0]).out_features
    shapes = [(each.in_features, each.out_features) for each in cast("list[nn.Linear]", linears)]
    if shapes != [(channels, width)] * 3 + [(width, channels)] or width % heads or channels % width:
        return None
    return channels // width, heads


def _share(ours: CrossAttention, theirs: nn.Module) -> None:
    for name in _PROJECTIONS:
        setattr(ours, name, theirs.get_submodule(name))


def _dtype(norm: nn.LayerNorm, tokens: Tensor) -> torch.dtype:
    """Of what the module's own norm gives for tokens that an attention's result was added to."""
    added = torch.promote_types(tokens.dtype, autocast_dtype(tokens))
    if added == tokens.dtype and autocast_dtype(tokens) == tokens.dtype:
        return tokens.dtype
    with torch.no_grad():
        return norm(tokens.new_zeros(1, norm.normalized_shape[0], dtype=added)).dtype
