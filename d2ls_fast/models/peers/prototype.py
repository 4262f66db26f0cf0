"""A head of static class prototypes on D2LS's backbone and neck: what the dynamic dictionary is to be better than."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2ls_fast.models.backbones import Backbone
from d2ls_fast.models.base import SegmentationModel
from d2ls_fast.models.create_backbone import create_backbone
from d2ls_fast.models.peers.peer import enlarged
from d2ls_fast.models.torchvision_backbones import TorchvisionBackbone
from d2ls_fast.nn.distributed import sum_over_processes
from d2ls_fast.nn.pyramid import PyramidNeck

_STRIDE = 4


class PrototypeOutput(NamedTuple):
    """Scores ``[B, K, H, W]``, unit pixel embeddings ``[B, C, h, w]``, and the prototypes they were compared with."""

    logits: Tensor
    embeddings: Tensor
    prototypes: ClassPrototypes
    aux_logits: Tensor | None = None
    contrastive: Tensor | None = None


class ClassPrototypes(nn.Module):
    r"""One prototype per class: the running mean of the class's pixel embeddings.

    As in PANet, a prototype is the masked mean of a class's embeddings and a pixel's score is its cosine similarity,
    times a fixed factor:

    .. math::
        m_k = \frac{\sum_n w_{nk} z_n}{\sum_n w_{nk}}, \quad p_k \leftarrow a \, p_k + (1 - a) \, m_k, \quad
        \mathrm{score}_{nk} = \alpha \cos(z_n, p_k)

    with z the unit embeddings of the stride-4 pixels and w the share of a pixel's 4 x 4 block that class k labels.
    PANet takes the means over the support images of an episode; with one fixed set of classes they are taken over the
    training batches, with :math:`a = \min(0.99, t / (10 + t))` at a class's t-th appearance. No gradient reaches p.

    Args:
        num_classes: K.
        embed_dim: C.
        scale: alpha; 20 in PANet.

    Source: Wang et al., PANet (ICCV 2019), equations 1 to 3.
    """

    means: Tensor
    appearances: Tensor

    def __init__(self, num_classes: int, embed_dim: int, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("means", F.normalize(torch.randn(num_classes, embed_dim), dim=1))
        self.register_buffer("appearances", torch.zeros(num_classes))

    def forward(self, pixels: Tensor) -> Tensor:
        """Unit embeddings ``[B, C, h, w]`` -> scores ``[B, K, h, w]``."""
        directions = F.normalize(self.means, dim=1).to(pixels.dtype)
        with torch.autocast(pixels.device.type, enabled=False):
            return self.scale * torch.einsum("bchw,kc->bkhw", pixels, directions)

    @torch.no_grad()
    def learn(self, pixels: Tensor, target: Tensor, ignore_index: int = 255) -> None:
        """Move the prototypes towards the means of this batch, taken over all processes of the run.

        Args:
            pixels: unit embeddings ``[B, C, h, w]``.
            target: int64 ``[B, H, W]``, H <= 4h and W <= 4w.
        """
        classes = torch.arange(len(self.means), device=target.device).view(1, -1, 1, 1)
        labels = target.where(target != ignore_index, -1).unsqueeze(1)
        below, right = _STRIDE * pixels.shape[2] - target.shape[1], _STRIDE * pixels.shape[3] - target.shape[2]
        members = F.pad((labels == classes).float(), (0, right, 0, below))
        weights = F.avg_pool2d(members, _STRIDE)
        with torch.autocast(pixels.device.type, enabled=False):
            sums = torch.einsum("bkhw,bchw->kc", weights, pixels.to(weights.dtype))
        sums, totals = sum_over_processes([sums, weights.sum((0, 2, 3))])
        seen = (totals > 0).unsqueeze(1)
        kept = (self.appearances / (10 + self.appearances)).clamp_max(0.99).unsqueeze(1)
        means = sums / totals.clamp_min(1e-6).unsqueeze(1)
        self.means.copy_(torch.where(seen, kept * self.means + (1 - kept) * means, self.means))
        self.appearances += seen.squeeze(1)


class PrototypeNet(SegmentationModel):
    """Backbone, D2LS's pyramid neck, a pixel embedding and :class:`ClassPrototypes`."""

    def __init__(
        self, backbone: Backbone | TorchvisionBackbone, num_classes: int, embed_dim: int, config: dict[str, Any]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = PyramidNeck(backbone.channels, embed_dim)
        self.embed = nn.Sequential(nn.LayerNorm(embed_dim), nn.GELU(), nn.Linear(embed_dim, embed_dim))
        self.prototypes = ClassPrototypes(num_classes, embed_dim)
        self.config = config

    def forward(self, images: Tensor, keep_logits: bool = True) -> Tensor | PrototypeOutput:
        """As the base class says; the training output is a :class:`PrototypeOutput`."""
        features: Sequence[Tensor] = self.backbone(self.padded(images))
        embedded = self.embed(self.neck(features)).transpose(1, 2).unflatten(2, features[0].shape[-2:])
        pixels = F.normalize(embedded.to(torch.promote_types(embedded.dtype, torch.float32)), dim=1)
        logits = enlarged(self.prototypes(pixels), images)
        return PrototypeOutput(logits, pixels, self.prototypes) if self.training else logits

    def training_loss(self, loss: nn.Module) -> nn.Module:
        """The recipe's loss, which also shows the prototypes their classes."""
        return PrototypeLoss(loss)


class PrototypeLoss(nn.Module):
    """A loss on the scores, after which the prototypes learn from the same labels.

    Args:
        loss: takes a training output and labels, gives the total and its terms.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: PrototypeOutput, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The total and its terms, from the prototypes as they were."""
        total, terms = self.loss(output, target)
        output.prototypes.learn(output.embeddings.detach(), target)
        return total, terms


def build(
    backbone: str, num_classes: int, in_chans: int, pretrained: bool | str | Path, embed_dim: int = 256
) -> PrototypeNet:
    """The static-prototype network.

    Args:
        backbone: a timm model with maps at strides 4, 8, 16 and 32.
        embed_dim: C, of the neck and the embeddings.
    """
    arguments = {"backbone": backbone, "num_classes": num_classes, "in_chans": in_chans, "embed_dim": embed_dim}
    features = create_backbone(backbone, in_chans, pretrained)
    return PrototypeNet(features, num_classes, embed_dim, {"name": "prototype", **arguments})
