"""The mask decoder of the SAM family: the prompts of an image share its pixels instead of copying them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from d2ls_fast.models.patching.fast import Fast
from d2ls_fast.models.patching.structure import part
from d2ls_fast.models.patching.two_way import FastTwoWay


class FastMaskDecoder(Fast):
    """A decoder that repeats the embedding of its one image for every prompt, as ``transformers``' Sam and Sam2 do.

    The decoder's own method runs, but what it repeats along the batch is a view that repeats nothing in memory, which
    tells :class:`~d2ls_fast.models.patching.two_way.FastTwoWay` that all prompts look at the same pixels. With several
    images there is no such view, and they are copied as before.
    """

    switch = "two_way"

    @classmethod
    def find(cls, module: nn.Module) -> str | bool:
        transformer = part(module, "transformer")
        known = transformer is not None and (
            isinstance(transformer, FastTwoWay) or FastTwoWay.find(transformer) is True
        )
        return known and part(module, "mask_tokens") is not None

    @classmethod
    def example(cls, module: nn.Module, random: Callable[..., Tensor]) -> Sequence[Any]:
        tokens, *_ = FastTwoWay.example(module.get_submodule("transformer"), random)
        channels, height, width = tokens.shape[-1], 2, 4
        arguments = {
            "image_embeddings": random(1, channels, height, width),
            "image_positional_embeddings": random(1, channels, height, width),
            "sparse_prompt_embeddings": tokens,
            "dense_prompt_embeddings": random(1, channels, height, width),
            "multimask_output": True,
            "hq_token_only": False,
            "high_resolution_features": [
                random(1, channels // 8, 4 * height, 4 * width),
                random(1, channels // 4, 2 * height, 2 * width),
            ],
        }
        parameters = list(inspect.signature(module.forward).parameters.values())
        return [arguments[p.name] for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]

    @classmethod
    def bypassed(cls, module: nn.Module) -> tuple[nn.Module, ...]:
        return ()

    def forward(self, *arguments: Any, **named: Any) -> Any:
        with _RepeatsAsViews():
            return super().forward(*arguments, **named)


class _RepeatsAsViews(TorchFunctionMode):
    """``repeat_interleave`` of a batch of one is ``expand``: the same values without a copy."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.repeat_interleave or function is torch.repeat_interleave:
            tensor, repeats, dim = _repetition(*args, **(kwargs or {}))
            if dim == 0 and isinstance(repeats, int) and tensor.shape[0] == 1:
                return tensor.expand(repeats, *tensor.shape[1:])
        return function(*args, **(kwargs or {}))


def _repetition(input: Tensor, repeats: Any = None, dim: int | None = None, **_: Any) -> tuple[Tensor, Any, int | None]:
    return input, repeats, dim
