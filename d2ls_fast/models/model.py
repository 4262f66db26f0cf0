"""The whole model: any backbone with four maps, and the D2LS head."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2ls_fast.errors import UserError
from d2ls_fast.models.backbones import Backbone, nearest
from d2ls_fast.models.base import SegmentationModel
from d2ls_fast.models.create_backbone import create_backbone
from d2ls_fast.models.graphed import CompiledInference
from d2ls_fast.models.head import D2LSHead, D2LSOutput
from d2ls_fast.models.torchvision_backbones import TorchvisionBackbone
from d2ls_fast.nn.classifier import PixelScores


class D2LS(SegmentationModel):
    """A backbone and a D2LS head.

    Attributes:
        backbone: gives four maps at strides 4, 8, 16, 32.
        head: the :class:`~d2ls_fast.models.head.D2LSHead`.
        config: the arguments of :func:`create_model` that rebuild this model, plain JSON values.
    """

    def __init__(self, backbone: Backbone | TorchvisionBackbone, head: D2LSHead, config: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.config = config

    def forward(self, images: Tensor, keep_logits: bool = True) -> Tensor | D2LSOutput:
        """Normalised images ``[B, in_chans, H, W]`` -> class scores.

        Args:
            images: of any size from 32 x 32.
            keep_logits: False, in training mode, leaves the logits uncomputed: the loss does not need them.

        Returns:
            in evaluation mode logits ``[B, K, H, W]`` float32 (float64 in a float64 model); in training mode a
            :class:`~d2ls_fast.models.head.D2LSOutput` whose logits have that size; with ``keep_logits=False``
            they are :class:`~d2ls_fast.nn.classifier.PixelScores`.

        Raises:
            UserError: not a batch of images with ``in_chans`` bands, or smaller than 32 x 32.
        """
        size = (images.shape[-2], images.shape[-1])
        output: D2LSOutput = self.head(self.backbone(self.padded(images)), keep_logits or not self.training)
        logits = _cropped(output.logits, size)
        if isinstance(logits, Tensor) and not self.training:
            return logits
        aux_logits = None if output.aux_logits is None else _cropped(output.aux_logits, size)
        intermediate = tuple(_cropped(each, size) for each in output.intermediate)
        # Built anew: torch.compile of 2.11 cannot return the result of _replace.
        return D2LSOutput(
            logits, aux_logits, output.dictionary, output.pixels, output.contrastive, intermediate, output.grid
        )

    def classify(self, images: Tensor, return_confidence: bool) -> tuple[Tensor, Tensor | None]:
        """As the base class says; the full-resolution logits of the batch are never stored."""
        height, width = images.shape[-2:]
        return self.head.predict(self.backbone(self.padded(images)), (height, width), return_confidence)

    def compile_for_inference(
        self,
        size: int | tuple[int, int],
        batch: int = 1,
        dtype: torch.dtype | None = None,
        return_confidence: bool = False,
    ) -> CompiledInference:
        """This model's :meth:`predict` for ``batch`` images of one size, captured in a CUDA graph.

        Warms up (where Triton compiles), captures, and gives an object whose ``predict`` replays: one launch instead of
        hundreds, which is what small images wait for. It gives the labels that ``predict`` gives, in evaluation mode.

        Args:
            size: H = W, or (H, W), each at least 32.
            batch: images a call.
            dtype: bfloat16 or float16 for mixed precision, as ``predict`` under ``torch.autocast``; by default the
                parameters' own. A model converted beforehand (``model.bfloat16()``) saves casting the weights anew in
                every replay.
            return_confidence: whether ``predict`` gives the confidence too.

        Raises:
            UserError: there is no GPU or the model is not on it, a size, batch or dtype that does not do, no memory, or
                a backbone that cannot be captured.
        """
        return CompiledInference(self, size, batch, dtype, return_confidence)

    def to_official_state_dict(
        self, like: Mapping[str, Tensor] | str | os.PathLike[str] | None = None
    ) -> dict[str, Tensor]:
        """The weights under the release's names; see :func:`~d2ls_fast.models.load_official.export_official`."""
        from d2ls_fast.models.load_official import export_official  # which builds models with this module

        return export_official(self, like)


def create_model(
    backbone: str,
    num_classes: int,
    in_chans: int = 3,
    stages: int = 3,
    pretrained: bool | str | Path = False,
    **head_options: Any,
) -> D2LS:
    """Build D2LS on a timm backbone, or on one of torchvision's.

    Args:
        backbone: a timm model with feature maps at strides 4, 8, 16 and 32, or ``torchvision:NAME`` for one that the
            release uses (:data:`~d2ls_fast.models.torchvision_backbones.ARCHITECTURES`).
        num_classes: K >= 1.
        in_chans: bands of the images; pretrained RGB weights are spread over them.
        stages: interaction stages L.
        pretrained: False, True (timm downloads the weights) or the path of a local weight file.
        head_options: any further argument of :class:`~d2ls_fast.models.head.D2LSHead`.

    Raises:
        UserError: the backbone is unknown or unsuitable, its weights cannot be had, or an option is wrong.
    """
    known = [name for name in inspect.signature(D2LSHead).parameters if name not in ("in_channels", "num_classes")]
    for name in head_options:
        if name not in known:
            raise UserError(f"model option {name!r} is unknown; {nearest(name, known)}")
    features = create_backbone(backbone, in_chans, pretrained)
    try:
        head = D2LSHead(features.channels, num_classes, stages=stages, **head_options)
    except ValueError as error:
        raise UserError(f"model options: {error}") from None
    config = {"backbone": backbone, "num_classes": num_classes, "in_chans": in_chans, "stages": stages, **head_options}
    return D2LS(features, head, config)


def _cropped(logits: Tensor | PixelScores, size: tuple[int, int]) -> Tensor | PixelScores:
    return logits.cropped(size) if isinstance(logits, PixelScores) else logits[..., : size[0], : size[1]]
