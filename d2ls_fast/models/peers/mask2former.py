"""Mask2Former on any timm backbone: queries that each predict a class and a mask, matched to the truth as a set.

Source: Cheng et al., Masked-attention Mask Transformer for Universal Image Segmentation (CVPR 2022), as
``transformers`` has it, with the published sizes: 6 layers of deformable attention, 9 of masked attention, 100 queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerLoss,
    Mask2FormerPixelDecoder,
    Mask2FormerPreTrainedModel,
    Mask2FormerTransformerModule,
)

from d2ls_fast.models.base import SegmentationModel
from d2ls_fast.models.create_backbone import create_backbone
from d2ls_fast.models.peers.peer import enlarged

_SMALLEST_SCORE = 1e-12  # keeps the logarithm finite in float32


class QueryOutput(NamedTuple):
    """Of every decoder layer, last one last: class logits ``[B, Q, K + 1]`` and mask logits ``[B, Q, h, w]``."""

    classes: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]


class QueryHead(Mask2FormerPreTrainedModel):
    """Pixel decoder, transformer decoder and class predictor on the four maps of any backbone."""

    def __init__(self, config: Mask2FormerConfig, channels: Sequence[int]) -> None:
        super().__init__(config)
        self.pixel_decoder = Mask2FormerPixelDecoder(config, list(channels))
        self.transformer = Mask2FormerTransformerModule(config.feature_size, config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.post_init()

    def forward(self, features: Sequence[Tensor]) -> QueryOutput:
        # Deformable attention samples at positions finer than half precision resolves.
        with torch.autocast(features[0].device.type, enabled=False):
            decoded = self.pixel_decoder([f.to(self.class_predictor.weight.dtype) for f in features])
        found = self.transformer(decoded.multi_scale_features, decoded.mask_features, output_hidden_states=True)
        classes = tuple(self.class_predictor(state.transpose(0, 1)) for state in found.intermediate_hidden_states)
        return QueryOutput(classes, tuple(found.masks_queries_logits))


class Mask2Former(SegmentationModel):
    r"""Semantic segmentation with Mask2Former.

    A pixel's score of class k is :math:`s_k = \sum_q \mathrm{softmax}(c_q)_k \, \sigma(m_q)`; the logits are
    :math:`\log s_k`, so that their softmax is :math:`s_k / \sum_j s_j`. It trains on its own :class:`SetLoss`.
    """

    def __init__(self, backbone: nn.Module, head: QueryHead, config: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.config = config

    def forward(self, images: Tensor, keep_logits: bool = True) -> Tensor | QueryOutput:
        """As the base class says; the training output is a :class:`QueryOutput`."""
        output: QueryOutput = self.head(self.backbone(self.padded(images)))
        if self.training:
            return output
        classes, masks = (layers[-1].to(torch.promote_types(layers[-1].dtype, torch.float32)) for layers in output)
        with torch.autocast(images.device.type, enabled=False):
            scores = torch.einsum("bqk,bqhw->bkhw", classes.softmax(-1)[..., :-1], masks.sigmoid())
        return enlarged(scores, images).clamp_min(_SMALLEST_SCORE).log()

    def training_loss(self, loss: nn.Module) -> nn.Module:
        """The published set loss, whatever the recipe's: its terms and weights belong to the method."""
        return SetLoss(self.head.config)


class SetLoss(nn.Module):
    """Mask2Former's loss, with the published weights 2 (class), 5 (mask), 5 (dice), on every decoder layer.

    The truth of an image is the set of its classes, each with the mask of all its pixels. Pixels without a label belong
    to no mask (points drawn there count as outside all of them, as in the original); images without any label take no
    part.
    """

    def __init__(self, config: Mask2FormerConfig, ignore_index: int = 255) -> None:
        super().__init__()
        weights = {"cross_entropy": config.class_weight, "mask": config.mask_weight, "dice": config.dice_weight}
        self.weights: dict[str, float] = weights
        self.criterion = Mask2FormerLoss(config, weights)
        self.ignore_index = ignore_index

    def forward(self, output: QueryOutput, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The total and its terms.

        Args:
            output: of the model in training mode.
            target: int64 ``[B, H, W]``.

        Returns:
            total (differentiable scalar) and the terms ``cross_entropy``, ``mask`` and ``dice`` of the last layer and
            ``auxiliary``, the sum of the other layers': detached, weighted, adding up to the total.
        """
        labelled = [b for b, labels in enumerate(target) if bool((labels != self.ignore_index).any())]
        classes, masks = ([layer.float() if labelled else layer.float()[:0] for layer in layers] for layers in output)
        if not labelled:
            total = torch.stack([layer.sum() for layer in (*classes, *masks)]).sum()
            return total, {"cross_entropy": total.detach()}
        target = _padded(target[labelled])
        present = [labels.unique() for labels in target]
        present = [found[found != self.ignore_index] for found in present]
        truth = [(labels == found.view(-1, 1, 1)).float() for labels, found in zip(target, present, strict=True)]
        inner = [
            {"masks_queries_logits": m[labelled], "class_queries_logits": c[labelled]}
            for m, c in zip(masks[:-1], classes[:-1], strict=True)
        ]
        with torch.autocast(target.device.type, enabled=False):
            parts: dict[str, Tensor] = self.criterion(masks[-1][labelled], classes[-1][labelled], truth, present, inner)
        terms = {name: weight * parts.pop(f"loss_{name}") for name, weight in self.weights.items()}
        weighed = [
            weight * part
            for key, part in parts.items()
            for name, weight in self.weights.items()
            if key.startswith(f"loss_{name}_")
        ]
        terms["auxiliary"] = torch.stack(weighed).sum()
        total = torch.stack(list(terms.values())).sum()
        return total, {name: term.detach() for name, term in terms.items()}


def _padded(target: Tensor) -> Tensor:
    """The labels of the padded images: masks are compared by position relative to the whole."""
    bottom, right = -target.shape[1] % 32, -target.shape[2] % 32
    return F.pad(target.float().unsqueeze(1), (0, right, 0, bottom), mode="replicate").squeeze(1).to(target.dtype)


def build(
    backbone: str,
    num_classes: int,
    in_chans: int,
    pretrained: bool | str | Path,
    embed_dim: int = 256,
    num_heads: int = 8,
) -> Mask2Former:
    """Mask2Former.

    Args:
        backbone: a timm model with maps at strides 4, 8, 16 and 32, such as ``swin_tiny_patch4_window7_224``.
        embed_dim: channels of both decoders, a multiple of 32.
        num_heads: attention heads; must divide embed_dim.
    """
    if embed_dim % 32 or embed_dim % num_heads:
        raise ValueError(f"mask2former needs embed_dim divisible by 32 and by num_heads, got {embed_dim}, {num_heads}")
    features = create_backbone(backbone, in_chans, pretrained)
    config = Mask2FormerConfig(
        feature_size=embed_dim,
        mask_feature_size=embed_dim,
        hidden_dim=embed_dim,
        encoder_feedforward_dim=4 * embed_dim,
        dim_feedforward=8 * embed_dim,
        num_attention_heads=num_heads,
        num_labels=num_classes,
    )
    arguments = {"backbone": backbone, "num_classes": num_classes, "in_chans": in_chans, "embed_dim": embed_dim}
    settings = {"name": "mask2former", **arguments, "num_heads": num_heads}
    return Mask2Former(features, QueryHead(config, features.channels), settings)
