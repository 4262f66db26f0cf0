"""What the peers share: a backbone, their training output, and scores brought to the images' size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2ls_fast.models.base import SegmentationModel


class PeerOutput(NamedTuple):
    """What :class:`~d2ls_fast.nn.losses.D2LSLoss` reads: scores ``[B, K, H, W]``, or None where a peer has no such."""

    logits: Tensor
    aux_logits: Tensor | None = None
    contrastive: Tensor | None = None


class Peer(SegmentationModel):
    """A backbone, a head that scores its four maps, and perhaps a second, auxiliary head for training.

    Args:
        backbone: gives four maps at strides 4, 8, 16, 32; knows its ``name``, ``in_chans`` and ``channels``.
        head: maps -> ``[B, K, h, w]``.
        auxiliary: the same; its scores are trained with the weight ``loss.auxiliary_weight``.
        config: see :class:`~d2ls_fast.models.base.SegmentationModel`.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, config: dict[str, Any], auxiliary: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.auxiliary = auxiliary
        self.config = config

    def forward(self, images: Tensor, keep_logits: bool = True) -> Tensor | PeerOutput:
        """As the base class says; the training output is a :class:`PeerOutput`."""
        features: Sequence[Tensor] = self.backbone(self.padded(images))
        logits = enlarged(self.head(features), images)
        if not self.training:
            return logits
        return PeerOutput(logits, None if self.auxiliary is None else enlarged(self.auxiliary(features), images))


def enlarged(scores: Tensor, images: Tensor) -> Tensor:
    """Scores of the padded ``images`` at any stride, brought to ``images``' own size (bilinear), at least float32."""
    height, width = images.shape[-2:]
    size = (height + -height % 32, width + -width % 32)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)[..., :height, :width]
