"""Contrastive terms: the release's ratio over the dictionary, and pixel-dictionary InfoNCE."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Direction = Literal["pixels", "dictionary", "both"]


class RatioContrastiveLoss(nn.Module):
    r"""Pull an entry's versions across the batch together, push different entries apart.

    With :math:`\mu_k = \mathrm{mean}_b D_{bk}`:

    .. math::
        \frac{\mathrm{mean}_{b,k} |D_{bk} - \mu_k|^2}{\mathrm{mean}_{j<k} |\mu_j - \mu_k|^2 + \epsilon}

    Zero for a batch of one, and for a single entry (there is nothing to push apart).

    Source: the released code of D2LS (arXiv 2503.06683), where it is taken of the dynamic dictionary D_0.
    """

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, dictionary: Tensor) -> Tensor:
        """``[B, K, C]`` -> scalar, at least float32."""
        with torch.autocast(dictionary.device.type, enabled=False):
            d = dictionary.to(torch.promote_types(dictionary.dtype, torch.float32))
            entries = d.shape[1]
            mean = d.mean(0)
            intra = (d - mean).square().sum(-1).mean()
            if entries < 2:
                return intra * 0.0
            # mean over pairs j < k of |mu_j - mu_k|^2 = 2 / (K - 1) * sum_k |mu_k - mean(mu)|^2: no K x K x C tensor.
            inter = (mean - mean.mean(0)).square().sum() * (2.0 / (entries - 1))
            return intra / (inter + self.eps)


class PixelDictionaryInfoNCE(nn.Module):
    r"""Every pixel feature is close to the dictionary entry of its class and far from the others.

    With :math:`s_{nk} = \cos(x_n, D_k) / \tau`, y the label and all means over labelled pixels:

    - ``pixels``: :math:`\mathrm{mean}_n [\mathrm{lse}_k s_{nk} - s_{n y_n}]`, negatives are the other entries;
    - ``dictionary``: mean over the classes present in an image of
      :math:`\mathrm{lse}_n s_{nk} - \mathrm{mean}_{n: y_n = k} s_{nk}`, negatives are the image's other pixels;
    - ``both``: the mean of the two.

    With P entries a class, the positive score of a class is the log-sum-exp over its P entries.

    Args:
        temperature: tau > 0.
        ignore_index: label of pixels that take no part.
        balanced: in the pixel direction, average within each class first, so that every class present counts the same.
        direction: ``pixels``, ``dictionary`` or ``both``.
        prototypes: P, dictionary entries per class (class-major rows).

    Source: the contrastive term as the paper summarises it (arXiv 2503.06683); InfoNCE, van den Oord et al. 2018.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        ignore_index: int = 255,
        balanced: bool = False,
        direction: Direction = "pixels",
        prototypes: int = 1,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if direction not in get_args(Direction):
            raise ValueError(f"direction must be one of {', '.join(get_args(Direction))}, got {direction!r}")
        if prototypes < 1:
            raise ValueError(f"prototypes must be at least 1, got {prototypes}")
        self.temperature = temperature
        self.ignore_index = ignore_index
        self.balanced = balanced
        self.direction = direction
        self.prototypes = prototypes

    def forward(self, pixels: Tensor, dictionary: Tensor, target: Tensor) -> Tensor:
        """The loss; zero, with zero gradients, where no pixel is labelled.

        Args:
            pixels: ``[B, N, C]``.
            dictionary: ``[B, K * P, C]``.
            target: labels of the same pixels, ``[B, N]`` or ``[B, h, w]`` with ``h * w = N``, int64.

        Returns:
            scalar, at least float32.
        """
        labels = target.flatten(1)
        if labels.shape != pixels.shape[:2]:
            raise ValueError(f"target must label the {tuple(pixels.shape[:2])} pixels, got shape {tuple(target.shape)}")
        with torch.autocast(pixels.device.type, enabled=False):
            dtype = torch.promote_types(pixels.dtype, torch.float32)
            x, d = F.normalize(pixels.to(dtype), dim=-1), F.normalize(dictionary.to(dtype), dim=-1)
            scores = (x @ d.transpose(-1, -2)) / self.temperature
            scores = scores.unflatten(-1, (-1, self.prototypes)).logsumexp(-1)  # [B, N, K]
            # one row of zeros for an ignored pixel
            classes = torch.arange(scores.shape[-1], device=labels.device)
            positive = ((labels.unsqueeze(-1) == classes) & (labels != self.ignore_index).unsqueeze(-1)).to(dtype)
            if self.direction == "pixels":
                return self._from_pixels(scores, positive)
            if self.direction == "dictionary":
                return self._from_dictionary(scores, positive)
            return 0.5 * (self._from_pixels(scores, positive) + self._from_dictionary(scores, positive))

    def _from_pixels(self, scores: Tensor, positive: Tensor) -> Tensor:
        per_class = -(scores.log_softmax(-1) * positive).sum((0, 1))  # [K]
        count = positive.sum((0, 1))
        if self.balanced:
            return (per_class / count.clamp_min(1)).sum() / (count > 0).sum().clamp_min(1)
        return per_class.sum() / count.sum().clamp_min(1)

    def _from_dictionary(self, scores: Tensor, positive: Tensor) -> Tensor:
        labelled = positive.sum(-1, keepdim=True) > 0
        # The lowest finite score, not -inf: an image without labels would otherwise give NaN gradients.
        masked = scores.masked_fill(~labelled, torch.finfo(scores.dtype).min)
        count = positive.sum(1)  # [B, K]
        loss = masked.logsumexp(1) - (scores * positive).sum(1) / count.clamp_min(1)
        present = count > 0
        return loss.where(present, 0.0).sum() / present.sum().clamp_min(1)
