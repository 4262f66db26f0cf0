"""The whole model: any timm backbone with four maps, and the D2LS head."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2ls_fast.errors import UserError
from d2ls_fast.models.backbones import Backbone, nearest
from d2ls_fast.models.head import D2LSHead, D2LSOutput
from d2ls_fast.nn.classifier import PixelScores

_STRIDE = 32


class D2LS(nn.Module):
    """A backbone and a D2LS head.

    Images of any size from 32 x 32 are taken: they are padded at the bottom and the right to multiples of 32 by
    repeating the edge, and results are cropped back, so every backbone sees sizes that all its strides divide.

    Attributes:
        backbone: gives four maps at strides 4, 8, 16, 32.
        head: the :class:`~d2ls_fast.models.head.D2LSHead`.
        config: the arguments of :func:`create_model` that rebuild this model, plain JSON values.
    """

    def __init__(self, backbone: Backbone, head: D2LSHead, config: dict[str, Any]) -> None:
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
        output: D2LSOutput = self.head(self.backbone(self._padded(images)), keep_logits or not self.training)
        logits = _cropped(output.logits, size)
        if isinstance(logits, Tensor) and not self.training:
            return logits
        aux_logits = None if output.aux_logits is None else _cropped(output.aux_logits, size)
        intermediate = tuple(_cropped(each, size) for each in output.intermediate)
        return output._replace(logits=logits, aux_logits=aux_logits, intermediate=intermediate)

    @overload
    def predict(self, images: Tensor, return_confidence: Literal[False] = False) -> Tensor: ...

    @overload
    def predict(self, images: Tensor, return_confidence: Literal[True]) -> tuple[Tensor, Tensor]: ...

    def predict(self, images: Tensor, return_confidence: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The most likely class of every pixel, always in evaluation mode and without gradients.

        The full-resolution logits of the batch are never stored.

        Returns:
            labels ``[B, H, W]`` uint8 (int16 above 256 classes), and with ``return_confidence`` their softmax
            probability ``[B, H, W]`` float32.

        Raises:
            UserError: as :meth:`forward`.
        """
        height, width = images.shape[-2:]
        with _evaluating(self), torch.no_grad():
            features = self.backbone(self._padded(images))
            labels, confidence = self.head.predict(features, (height, width), return_confidence)
        return labels if confidence is None else (labels, confidence)

    def _padded(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] != self.backbone.in_chans:
            raise UserError(
                f"images must be [B, {self.backbone.in_chans}, H, W] for this model, got {list(images.shape)};"
                " choose the bands it was made for"
            )
        height, width = images.shape[-2:]
        if height < _STRIDE or width < _STRIDE:
            raise UserError(f"images must be at least {_STRIDE} x {_STRIDE} pixels, got {height} x {width}; pad them")
        bottom, right = -height % _STRIDE, -width % _STRIDE
        return F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images


def create_model(
    backbone: str,
    num_classes: int,
    in_chans: int = 3,
    stages: int = 3,
    pretrained: bool | str | Path = False,
    **head_options: Any,
) -> D2LS:
    """Build D2LS on a timm backbone.

    Args:
        backbone: a timm model with feature maps at strides 4, 8, 16 and 32.
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
    features = Backbone(backbone, in_chans=in_chans, pretrained=pretrained)
    try:
        head = D2LSHead(features.channels, num_classes, stages=stages, **head_options)
    except ValueError as error:
        raise UserError(f"model options: {error}") from None
    config = {"backbone": backbone, "num_classes": num_classes, "in_chans": in_chans, "stages": stages, **head_options}
    return D2LS(features, head, config)


def _cropped(logits: Tensor | PixelScores, size: tuple[int, int]) -> Tensor | PixelScores:
    return logits.cropped(size) if isinstance(logits, PixelScores) else logits[..., : size[0], : size[1]]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module is back in its own mode (some may be frozen)."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
