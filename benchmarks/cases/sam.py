"""The mask decoder of SAM before and after ``patch()``: with ``--size 1024`` the released 64x64 pixels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from d2ls_fast.benchmarks.cases.common import TOLERANCE, Compute, Sizes, forward, random, with_backward
from d2ls_fast.benchmarks.harness import Case, Variant
from d2ls_fast.errors import UserError
from d2ls_fast.models.patching import patch

_POINTS, _STRIDE = 2, 16  # a point and the padding that goes with it; image pixels to a pixel of the embedding


def cases(sizes: Sizes) -> list[Case]:
    """Two-way transformer alone and whole decoder, of one image and ``sizes.batch`` prompts, at the released widths.

    All get the pixels of the image as a view that repeats them for every prompt; the unpatched decoder copies them.

    Raises:
        UserError: ``transformers`` is missing.
    """
    if find_spec("transformers") is None:
        raise UserError("bench sam: transformers is not installed; pip install 'transformers>=5.23,<6'")
    from transformers.models.sam import SamMaskDecoderConfig
    from transformers.models.sam.modeling_sam import SamMaskDecoder

    torch.manual_seed(0)
    config = SamMaskDecoderConfig()
    config._attn_implementation = "sdpa"
    decoder = SamMaskDecoder(config).eval().to(sizes.device, sizes.dtype)
    generator = sizes.generator()
    channels, edge, prompts = config.hidden_size, sizes.size // _STRIDE, sizes.batch
    image, encoding = (random(generator, sizes, 1, channels, edge, edge) for _ in range(2))
    tokens = random(generator, sizes, 1, prompts, 1 + decoder.num_mask_tokens + _POINTS, channels)
    dtype = str(sizes.dtype).removeprefix("torch.")
    setting = f"P={prompts} {edge}x{edge} T={tokens.shape[2]} {dtype} {sizes.device}"

    def transform(module: nn.Module, tokens: Tensor, image: Tensor, encoding: Tensor) -> Sequence[Tensor]:
        views = (each.expand(prompts, -1, -1, -1) for each in (image, encoding))
        results: Sequence[Tensor] = module(tokens, *views, None)
        return results

    def decode(module: nn.Module, points: Tensor, image: Tensor, encoding: Tensor) -> Sequence[Tensor]:
        results: Sequence[Tensor] = module(image, encoding, points, torch.zeros_like(image), True)
        return results

    points = tokens[:, :, -_POINTS:].contiguous()
    return [
        *_cases("two-way transformer", setting, decoder.transformer, transform, (tokens, image, encoding), sizes),
        *_cases("mask decoder", setting, decoder, decode, (points, image, encoding), sizes),
    ]


def _cases(
    name: str,
    setting: str,
    module: nn.Module,
    call: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    sizes: Sizes,
) -> list[Case]:
    *leaves, encoding = inputs
    precise, patched = copy.deepcopy(module).double(), patch(copy.deepcopy(module))

    def encoded(module: nn.Module, *leaves: Tensor) -> Sequence[Tensor]:
        return call(module, *leaves, encoding.to(leaves[0].dtype))

    def computed(mode: Callable[..., Compute], module: nn.Module, dtype: torch.dtype = sizes.dtype) -> Compute:
        return mode(module, encoded, [leaf.to(dtype) for leaf in leaves])

    result = []
    for suffix, mode in (("forward", forward), ("forward + backward", with_backward)):
        variants = [
            Variant("original eager", computed(mode, module)),
            Variant("original compiled", torch.compile(computed(mode, module)), dispensable=True),
            Variant("fused", computed(mode, patched)),
        ]
        truth = computed(mode, precise, torch.float64)
        result.append(Case(f"{name} {suffix}", setting, truth, variants, TOLERANCE[sizes.dtype]))
    return result
