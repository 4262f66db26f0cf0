"""What every segmentation network of the package promises, D2LS and its peers alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2ls_fast.errors import UserError

STRIDE = 32


class SegmentationModel(nn.Module):
    """A network from images of any size from 32 x 32 to class scores of the same size.

    Images are padded at the bottom and the right to multiples of 32 by repeating the edge, and results are cropped
    back, so every backbone sees sizes that all its strides divide.

    Attributes:
        backbone: gives four maps at strides 4, 8, 16, 32 and knows its ``in_chans``.
        config: the arguments of :func:`~d2ls_fast.models.build.build_model` that rebuild it, plain JSON values.
    """

    backbone: Any
    config: dict[str, Any]

    def forward(self, images: Tensor, keep_logits: bool = True) -> Any:
        """Normalised images ``[B, in_chans, H, W]`` -> class scores.

        Args:
            images: of any size from 32 x 32.
            keep_logits: False allows training outputs whose logits are left to the loss, which may not need them.

        Returns:
            in evaluation mode logits ``[B, K, H, W]``, at least float32; in training mode what :meth:`training_loss`
            takes.

        Raises:
            UserError: not a batch of images with ``in_chans`` bands, or smaller than 32 x 32.
        """
        raise NotImplementedError

    def training_loss(self, loss: nn.Module) -> nn.Module:
        """What this network trains on where a recipe asks for ``loss``: that loss, unless it has one of its own."""
        return loss

    @overload
    def predict(self, images: Tensor, return_confidence: Literal[False] = False) -> Tensor: ...

    @overload
    def predict(self, images: Tensor, return_confidence: Literal[True]) -> tuple[Tensor, Tensor]: ...

    def predict(self, images: Tensor, return_confidence: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The most likely class of every pixel, always in evaluation mode and without gradients.

        Returns:
            labels ``[B, H, W]`` uint8 (int16 above 256 classes), and with ``return_confidence`` their softmax
            probability ``[B, H, W]`` float32.

        Raises:
            UserError: as :meth:`forward`.
        """
        with evaluating(self), torch.no_grad():
            labels, confidence = self.classify(images, return_confidence)
        return labels if confidence is None else (labels, confidence)

    def classify(self, images: Tensor, return_confidence: bool) -> tuple[Tensor, Tensor | None]:
        """Labels and, if wanted, confidence; called in evaluation mode without gradients."""
        logits: Tensor = self(images)
        confidence, labels = (logits.float().softmax(1) if return_confidence else logits).max(1)
        labels = labels.to(torch.uint8 if logits.shape[1] <= 256 else torch.int16)
        return labels, confidence if return_confidence else None

    def padded(self, images: Tensor) -> Tensor:
        """``images`` with sides that are multiples of 32.

        Raises:
            UserError: as :meth:`forward`.
        """
        bands = self.backbone.in_chans
        if images.dim() != 4 or images.shape[1] != bands:
            raise UserError(
                f"images must be [B, {bands}, H, W] for this model, got {list(images.shape)};"
                " choose the bands it was made for"
            )
        height, width = images.shape[-2:]
        if height < STRIDE or width < STRIDE:
            raise UserError(f"images must be at least {STRIDE} x {STRIDE} pixels, got {height} x {width}; pad them")
        bottom, right = -height % STRIDE, -width % STRIDE
        return F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module is back in its own mode (some may be frozen)."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
