"""Small mask decoders of transformers' SAM family with random weights, and what they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.edgetam import EdgeTamMaskDecoderConfig
from transformers.models.edgetam.modeling_edgetam import EdgeTamMaskDecoder
from transformers.models.sam import SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamMaskDecoder
from transformers.models.sam2 import Sam2MaskDecoderConfig
from transformers.models.sam2.modeling_sam2 import Sam2MaskDecoder
from transformers.models.sam3_tracker import Sam3TrackerMaskDecoderConfig
from transformers.models.sam3_tracker.modeling_sam3_tracker import Sam3TrackerMaskDecoder
from transformers.models.sam_hq import SamHQMaskDecoderConfig
from transformers.models.sam_hq.modeling_sam_hq import SamHQMaskDecoder

FAMILY: dict[str, tuple[Any, Any]] = {
    "sam": (SamMaskDecoder, SamMaskDecoderConfig),
    "sam_hq": (SamHQMaskDecoder, SamHQMaskDecoderConfig),
    "sam2": (Sam2MaskDecoder, Sam2MaskDecoderConfig),
    "edgetam": (EdgeTamMaskDecoder, EdgeTamMaskDecoderConfig),
    "sam3_tracker": (Sam3TrackerMaskDecoder, Sam3TrackerMaskDecoderConfig),
}


def decoder(name: str, channels: int = 32, heads: int = 4, **options: Any) -> nn.Module:
    """A decoder whose LayerNorms, too, are random: ones and zeros would hide a mistake."""
    torch.manual_seed(0)
    sizes = {"hidden_size": channels, "mlp_dim": 2 * channels, "iou_head_hidden_dim": channels}
    made, config = FAMILY[name]
    config = config(num_attention_heads=heads, **sizes, **options)
    config._attn_implementation = "sdpa"
    module: nn.Module = made(config).eval()
    for each in module.modules():
        if isinstance(each, nn.LayerNorm):
            nn.init.normal_(each.weight, 1, 0.2)
            nn.init.normal_(each.bias, 0, 0.2)
    return module


@dataclass
class Prompted:
    """Arguments of a decoder by name; those that gradients are wanted of are leaves."""

    named: dict[str, Any]

    @property
    def leaves(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.named.items() if isinstance(tensor, Tensor)}


def prompted(
    name: str, prompts: int, channels: int = 32, images: int = 1, points: int = 2, edge: int = 5, seed: int = 1
) -> Prompted:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    height, width = edge, edge + 1
    named: dict[str, Any] = {
        "image_embeddings": random(images, channels, height, width),
        "image_positional_embeddings": random(images, channels, height, width),
        "sparse_prompt_embeddings": random(images, prompts, points, channels),
        "dense_prompt_embeddings": random(images, channels, height, width),
        "multimask_output": True,
    }
    if name == "sam_hq":
        named["hq_token_only"] = False
    elif name != "sam":
        named["high_resolution_features"] = [
            random(images, channels // 8, 4 * height, 4 * width),
            random(images, channels // 4, 2 * height, 2 * width),
        ]
    return Prompted(named)


def run(module: nn.Module, inputs: Prompted) -> Sequence[Tensor]:
    """Masks, IoU scores and whatever else the decoder gives."""
    outputs: Sequence[Tensor] = module(**inputs.named)
    return outputs


def gradients(module: nn.Module, inputs: Prompted) -> tuple[Sequence[Tensor], dict[str, Tensor]]:
    """The outputs, and the gradients of all inputs and parameters for a loss that weighs every output's elements."""
    module.zero_grad()
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.leaves.items()}
    outputs = run(module, Prompted({**inputs.named, **leaves}))
    generator = torch.Generator().manual_seed(2)
    loss = sum((output * torch.randn(output.shape, generator=generator)).sum() for output in outputs)
    loss.backward()  # type: ignore[union-attr]
    found = {name: leaf.grad for name, leaf in (*leaves.items(), *module.named_parameters()) if leaf.grad is not None}
    return [output.detach() for output in outputs], {name: gradient.clone() for name, gradient in found.items()}
