"""The classification: upsampler and product in one operator, so that the upsampled pixels are never stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from d2ls_fast.models.patching.fast import Fast
from d2ls_fast.models.patching.structure import StandIn, autocast_dtype, part
from d2ls_fast.ops.classify import classify


class FastClassification(Fast):
    """``decoder.inference``: the interaction, then ``output_hypernetwork_mlps`` (both called as they are) times the
    ``upsampler``'s result."""

    switch = "classification"
    method = "inference"

    @classmethod
    def find(cls, module: nn.Module) -> str | bool:
        upsampler = part(module, "upsampler")
        if upsampler is None or part(module, "interactor") is None:
            return False
        if part(module, "output_hypernetwork_mlps") is None:
            return "it has no output_hypernetwork_mlps"
        children = list(upsampler.children())
        if not isinstance(upsampler, nn.Sequential) or len(children) != 5:
            return "its upsampler is not a sequence of shuffle, norm, GELU, shuffle, GELU"
        shuffles = (children[0], children[3])
        if not all(isinstance(each, nn.PixelShuffle) and each.upscale_factor == 2 for each in shuffles):
            return "its upsampler does not shuffle pixels by 2 twice"
        norm = children[1]
        shapes = {name: tuple(weight.shape) for name, weight in norm.named_parameters()}
        if set(shapes) != {"weight", "bias"} or len(set(shapes.values())) > 1 or not hasattr(norm, "eps"):
            return "its upsampler.1 is no norm with weight, bias and eps"
        if len(shapes["weight"]) != 1 or shapes["weight"][0] % 4:
            return "its upsampler.1 is no norm over a multiple of 4 channels"
        return True

    @classmethod
    def example(cls, module: nn.Module, random: Callable[..., Tensor]) -> Sequence[Any]:
        channels = 4 * len(_norm(module).weight)
        entries = getattr(part(module, "token.basic_queries"), "num_embeddings", 3)
        return random(2, channels, 2, 3), random(1, channels, 2, 3), random(2, entries, channels)

    @classmethod
    def stand_ins(cls, module: nn.Module) -> dict[int, Any]:
        def mix(pixels: Tensor, pixel_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            return tokens.sin(), (pixels + pixel_pe).flatten(2).transpose(1, 2)

        interactor = module.get_submodule("interactor")
        return {id(interactor): StandIn(interactor, mix)}

    @classmethod
    def bypassed(cls, module: nn.Module) -> tuple[nn.Module, ...]:
        return tuple(module.get_submodule("upsampler").modules())

    def inference(self, image_embeddings: Tensor, image_pe: Tensor, tokens: Tensor) -> Any:
        """Pixels ``[B, C, h, w]``, encoding, dictionary ``[B, K, C]`` -> logits ``[B, K, 4h, 4w]``."""
        if image_embeddings.dim() != 4 or not self.as_found():
            return super().inference(image_embeddings, image_pe, tokens)  # type: ignore[misc]
        image_pe = image_pe.expand(image_embeddings.shape[0], -1, -1, -1)
        tokens, pixels = cast(nn.Module, self.interactor)(image_embeddings, image_pe, tokens)
        vectors = cast(nn.Module, self.output_hypernetwork_mlps)(tokens)
        norm = _norm(self)
        grid = (image_embeddings.shape[2], image_embeddings.shape[3])
        logits = classify(pixels, norm.weight, norm.bias, vectors, grid, eps=norm.eps)
        return logits.to(torch.promote_types(autocast_dtype(pixels), autocast_dtype(vectors)))


def _norm(module: nn.Module) -> nn.LayerNorm:
    """The norm in the upsampler: a LayerNorm over channels by whatever class."""
    return cast(nn.LayerNorm, module.get_submodule("upsampler.1"))
