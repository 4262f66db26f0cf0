"""UPerNet on any timm backbone: pyramid pooling on the coarsest map, then a feature pyramid.

Source: Xiao et al., Unified Perceptual Parsing for Scene Understanding (ECCV 2018), as ``transformers`` has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from d2ls_fast.errors import UserError
from d2ls_fast.models.create_backbone import create_backbone
from d2ls_fast.models.peers.peer import Peer
from d2ls_fast.nn.distributed import world_size


class _Head(UperNetHead):
    """The head of ``transformers``, with a word about the one batch it cannot be trained on."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        if self.training and len(features[-1]) * world_size() == 1:
            # Its first pooling leaves one value a channel and image, which batch normalisation cannot normalise.
            raise UserError("UPerNet normalises over the batch and cannot train on one image; use batch_size=2 or more")
        scores: Tensor = super().forward(features)
        return scores


def build(
    backbone: str,
    num_classes: int,
    in_chans: int,
    pretrained: bool | str | Path,
    embed_dim: int = 256,
    auxiliary: bool = True,
) -> Peer:
    """UPerNet.

    Args:
        backbone: a timm model with maps at strides 4, 8, 16 and 32, such as ``convnext_tiny``.
        embed_dim: channels of the head (512 in the paper).
        auxiliary: train a small convolutional head on the stride-16 map beside it.
    """
    features = create_backbone(backbone, in_chans, pretrained)
    config = UperNetConfig(hidden_size=embed_dim, auxiliary_channels=embed_dim, num_labels=num_classes)
    arguments = {"backbone": backbone, "num_classes": num_classes, "in_chans": in_chans, "embed_dim": embed_dim}
    return Peer(
        features,
        _Head(config, features.channels),
        {"name": "upernet", **arguments, "auxiliary": auxiliary},
        UperNetFCNHead(config, features.channels) if auxiliary else None,
    )
