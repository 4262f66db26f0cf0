"""The two-way transformer of the SAM family: one pass over the pixels a block instead of four projections of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from d2ls_fast.models.patching.fast import Fast
from d2ls_fast.models.patching.structure import is_layer_norm, is_linear, part
from d2ls_fast.nn.cross_attention import Projections
from d2ls_fast.nn.two_way import Look, TwoWayStage, two_way

_TO_IMAGE, _TO_TOKENS = "cross_attn_token_to_image", "cross_attn_image_to_token"
_BLOCK = {"self_attn", "layer_norm1", _TO_IMAGE, "layer_norm2", "mlp", "layer_norm3", _TO_TOKENS, "layer_norm4"}
_FINAL, _FINAL_NORM = "final_attn_token_to_image", "layer_norm_final_attn"


class FastTwoWay(Fast):
    """The two-way transformer of ``transformers``' Sam, Sam2 and their relatives (SAM-HQ, EdgeTAM, SAM 3's tracker).

    Self-attention and MLP of the tokens are called as they are. The pixels of an image whose prompts share them are
    read once for all prompts in the first pass if they come expanded rather than copied, see
    :class:`~d2ls_fast.models.patching.mask_decoder.FastMaskDecoder`. Calls with an attention mask
    (``attention_similarity``), a ``target_embedding``, further options or hooks that want what a block returned, as
    ``output_attentions`` sets them, are the model's own.
    """

    switch = "two_way"

    @classmethod
    def find(cls, module: nn.Module) -> str | bool:
        layers, final, norm = (part(module, name) for name in ("layers", _FINAL, _FINAL_NORM))
        if not isinstance(layers, nn.ModuleList) or final is None or norm is None:
            return False
        for index, block in enumerate(layers):
            names = {name for name, _ in block.named_children()}
            if names != _BLOCK:
                return f"layers.{index} has the parts {', '.join(sorted(names))}, not {', '.join(sorted(_BLOCK))}"
            if not hasattr(block, "skip_first_layer_pe"):
                return f"layers.{index} has no skip_first_layer_pe"
        if len(layers) == 0:
            return "it has no layers"
        channels = getattr(part(final, "q_proj"), "in_features", 0)
        for name, attention in _cross_attentions(module):
            reason = _why_not(attention, channels)
            if reason:
                return f"{name} {reason}"
        for name, each in _pixel_norms(module):
            if not is_layer_norm(each, channels):
                return f"{name} is no LayerNorm over {channels} channels with weight and bias"
        return True

    @classmethod
    def example(cls, module: nn.Module, random: Callable[..., Tensor]) -> Sequence[Any]:
        for each in module.modules():
            config = getattr(each, "config", None)
            if config is not None and hasattr(config, "_attn_implementation"):
                config._attn_implementation = "sdpa"  # the others round: eager attention its softmax to float32
        channels = cast(nn.Linear, part(module, f"{_FINAL}.q_proj")).in_features
        prompts = random(1, 2, 3, channels)
        return prompts, random(1, channels, 2, 4).expand(2, -1, -1, -1), random(2, channels, 2, 4), None

    @classmethod
    def bypassed(cls, module: nn.Module) -> tuple[nn.Module, ...]:
        attentions = [inner for _, attention in _cross_attentions(module) for inner in attention.modules()]
        norms = [norm for _, norm in _pixel_norms(module)]
        return (*cast(nn.ModuleList, module.layers), *attentions, *norms)

    def forward(
        self,
        point_embeddings: Tensor,
        image_embeddings: Tensor,
        image_positional_embeddings: Tensor,
        attention_similarity: Tensor | None = None,
        target_embedding: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Tokens ``[B, P, T, C]``, pixels and their encoding ``[B * P, C, h, w]``: tokens, ``[B * P, 1, h * w, C]``."""
        blocks = cast(nn.ModuleList, self.layers)
        plain = attention_similarity is None and target_embedding is None and image_embeddings is not None
        plain = plain and all(option is None or option is False for option in options.values())
        if not plain or point_embeddings.numel() == 0 or not self.as_found():
            arguments = (image_embeddings, image_positional_embeddings, attention_similarity, target_embedding)
            return super().forward(point_embeddings, *arguments, **options)
        pixels, pixel_pe = _pixel_major(image_embeddings, image_positional_embeddings)
        final = Look(_Attention(self.get_submodule(_FINAL)), cast(nn.LayerNorm, self.get_submodule(_FINAL_NORM)))
        tokens, pixels = two_way([_stage(block) for block in blocks], final, point_embeddings, pixels, pixel_pe)
        # LayerNorm leaves float32 under autocast on a GPU, and elsewhere what it gets.
        wide = torch.is_autocast_enabled("cuda") and pixels.is_cuda
        return tokens, pixels.unsqueeze(1).to(torch.float32 if wide else image_embeddings.dtype)


class _Attention(Projections):
    """The projections of an attention of theirs."""

    def __init__(self, attention: nn.Module) -> None:
        self.num_heads, self.scale = cast(int, attention.num_attention_heads), cast(float, attention.scaling)
        self.q_proj, self.k_proj, self.v_proj = (
            cast(nn.Linear, attention.get_submodule(name)) for name in ("q_proj", "k_proj", "v_proj")
        )
        self.out_proj = cast(nn.Linear, _out_proj(attention))


def _stage(block: nn.Module) -> TwoWayStage:
    module = cast(Any, block)

    def mix(tokens: Tensor, position: Tensor) -> Tensor:
        placed = tokens if module.skip_first_layer_pe else tokens + position
        mixed, _ = module.self_attn(query=placed, key=placed, value=tokens)
        return cast(Tensor, module.layer_norm1(mixed if module.skip_first_layer_pe else tokens + mixed))

    def think(tokens: Tensor) -> Tensor:
        return cast(Tensor, module.layer_norm3(tokens + module.mlp(tokens)))

    look = Look(_Attention(getattr(module, _TO_IMAGE)), module.layer_norm2)
    return TwoWayStage(mix, look, think, _Attention(getattr(module, _TO_TOKENS)), module.layer_norm4)


def _pixel_major(image: Tensor, encoding: Tensor) -> tuple[Tensor, Tensor]:
    """``[B, C, h, w]`` -> ``[B, N, C]`` each, or ``[1, N, C]`` and ``[N, C]`` where the batch repeats one in memory."""
    one = encoding.shape[0] == 1 or encoding.stride(0) == 0
    if one and image.stride(0) == 0:
        image = image[:1]
    pixels = image.flatten(2).transpose(1, 2).contiguous()
    encoding = (encoding[:1] if one else encoding).flatten(2).transpose(1, 2).contiguous()
    return pixels, (encoding.squeeze(0) if one else encoding).to(pixels.dtype)


def _cross_attentions(module: nn.Module) -> list[tuple[str, nn.Module]]:
    names = [
        f"layers.{i}.{name}" for i in range(len(cast(nn.ModuleList, module.layers))) for name in (_TO_IMAGE, _TO_TOKENS)
    ]
    return [(name, module.get_submodule(name)) for name in (*names, _FINAL)]


def _pixel_norms(module: nn.Module) -> list[tuple[str, nn.Module]]:
    count = len(cast(nn.ModuleList, module.layers))
    names = [f"layers.{i}.{name}" for i in range(count) for name in ("layer_norm2", "layer_norm4")]
    return [(name, module.get_submodule(name)) for name in (*names, _FINAL_NORM)]


def _out_proj(attention: nn.Module) -> nn.Module | None:
    return part(attention, "out_proj") or part(attention, "o_proj")


def _why_not(attention: nn.Module, channels: int) -> str | None:
    """Why a cross-attention of theirs is not one of ours; None where it is."""
    inward, out = [part(attention, name) for name in ("q_proj", "k_proj", "v_proj")], _out_proj(attention)
    if len(list(attention.children())) != 4 or not all(map(is_linear, (*inward, out))):
        return "has other parts than the Linear layers q_proj, k_proj, v_proj and out_proj (o_proj), all with a bias"
    heads, scale = getattr(attention, "num_attention_heads", 0), getattr(attention, "scaling", 0.0)
    width = cast(nn.Linear, inward[0]).out_features
    shapes = [(each.in_features, each.out_features) for each in cast("list[nn.Linear]", [*inward, out])]
    if shapes != [(channels, width)] * 3 + [(width, channels)]:
        return f"projects {channels} channels in more than one way"
    if heads < 1 or width % heads or abs(scale * (width // heads) ** 0.5 - 1) > 1e-6:
        return f"has {heads} heads of a width {width} and scales by {scale}"
    return None
