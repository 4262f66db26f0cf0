"""The D2LS head: backbone maps in, class scores out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from d2ls_fast.models import official
from d2ls_fast.nn import resident
from d2ls_fast.nn.classifier import PixelClassifier, PixelScores, PrototypeReduction
from d2ls_fast.nn.contrast import RatioContrastiveLoss
from d2ls_fast.nn.dictionary import ClassDictionary
from d2ls_fast.nn.interaction import AlternatingCrossAttention
from d2ls_fast.nn.position import RandomFourierPositions
from d2ls_fast.nn.pyramid import PyramidNeck


class D2LSOutput(NamedTuple):
    """What the head gives.

    logits ``[B, K, H, W]`` float32, or :class:`~d2ls_fast.nn.classifier.PixelScores` where they were not to be kept;
    aux_logits, the same from the static dictionary (training only); dictionary ``[B, K * P, C]`` and pixels
    ``[B, h * w, C]`` after the interaction, of the main branch; contrastive, the scalar ratio over the dynamic
    dictionary (training only). None where switched off. intermediate, as logits, from the dictionary and the pixels
    after each stage of the main branch (training only, empty where switched off); grid, (h, w).
    """

    logits: Tensor | PixelScores
    aux_logits: Tensor | PixelScores | None
    dictionary: Tensor
    pixels: Tensor
    contrastive: Tensor | None
    intermediate: tuple[Tensor | PixelScores, ...] = ()
    grid: tuple[int, int] | None = None


class D2LSHead(nn.Module):
    r"""Neck, dictionary, alternating interaction and classification of D2LS.

    Args:
        in_channels: channels of the backbone's maps, finest (stride 4) first.
        num_classes: K.
        embed_dim: C, a multiple of 16.
        num_heads: attention heads; must divide C / 2.
        stages: L, interaction stages.
        query_ratio: R, variants mixed into every dynamic entry.
        alternating: False updates the dictionary only.
        dynamic: False uses the static dictionary; there is then no auxiliary branch and no contrastive term.
        contrastive: whether training gives the contrastive ratio.
        auxiliary: whether training also runs the static dictionary, through the same weights.
        intermediate: whether training also gives the scores after every stage, through the same classifier.
        prototypes: P, dictionary entries per class.
        prototype_reduction: ``logsumexp``, ``max`` or ``mean`` over a class's P scores.
        neck_bias: a bias in the neck's fusing convolution; the release has none, some of its forks do.

    Source: D2LS (arXiv 2503.06683).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        embed_dim: int = 256,
        num_heads: int = 8,
        stages: int = 3,
        query_ratio: int = 4,
        alternating: bool = True,
        dynamic: bool = True,
        contrastive: bool = True,
        auxiliary: bool = True,
        prototypes: int = 1,
        prototype_reduction: PrototypeReduction = "logsumexp",
        neck_bias: bool = False,
        intermediate: bool = False,
    ) -> None:
        super().__init__()
        self.dynamic = dynamic
        self.auxiliary = auxiliary and dynamic
        self.intermediate = intermediate
        self.neck = PyramidNeck(in_channels, embed_dim, bias=neck_bias)
        self.positions = RandomFourierPositions(embed_dim)
        self.dictionary = ClassDictionary(
            num_classes, embed_dim, prototypes, query_ratio, deepest_channels=in_channels[-1] if dynamic else None
        )
        self.interaction = AlternatingCrossAttention(embed_dim, num_heads, stages, alternating=alternating)
        self.classifier = PixelClassifier(num_classes, embed_dim, prototypes, prototype_reduction)
        self.contrast = RatioContrastiveLoss() if contrastive and dynamic else None

    def forward(self, features: Sequence[Tensor], keep_logits: bool = True) -> D2LSOutput:
        """Maps ``[B, c_i, h_i, w_i]``, finest first -> scores at four times the finest map's size.

        The auxiliary branch, the intermediate scores and the contrastive term are computed in training mode only.
        ``keep_logits=False`` leaves all logits to whoever needs them: the loss does not.
        """
        scored = self.classifier if keep_logits else self.classifier.scores
        pixels, pixel_pe, grid = self._embed(features)
        initial = self._initial_dictionary(features)
        both = self.training and self.auxiliary
        # One interaction for both dictionaries: the pixels they start from are the same.
        start = torch.cat([initial, self.dictionary.static(pixels.shape[0])]) if both else initial
        result = self.interaction.run(pixels, pixel_pe, start, keep_pixels=self.training and self.intermediate)
        dictionary, refined = result.dictionary, result.pixels
        # Only the main branch, the first of the two, is supervised stage by stage.
        stages = zip(result.stage_pixels, result.stage_dictionaries, strict=False)
        intermediate = tuple(scored(x[: len(initial)], d[: len(initial)], grid) for x, d in stages)
        aux_logits = contrastive = None
        if both:
            (dictionary, static), (refined, static_pixels) = dictionary.chunk(2), refined.chunk(2)
            aux_logits = scored(static_pixels, static, grid)
        logits = scored(refined, dictionary, grid)
        if self.training and self.contrast is not None:
            contrastive = self.contrast(initial)
        return D2LSOutput(logits, aux_logits, dictionary, refined, contrastive, intermediate, grid)

    def predict(
        self, features: Sequence[Tensor], size: tuple[int, int], return_confidence: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Labels ``[B, H, W]`` (uint8; int16 above 256 classes) and, if wanted, confidence ``[B, H, W]`` float32.

        ``size`` is (H, W), at most four times the finest map's. The full logits are never stored.
        """
        pixels, pixel_pe, grid = self._embed(features)
        initial = self._initial_dictionary(features)
        if resident.serves(self.interaction, pixels, initial):
            arguments = (pixels, pixel_pe, initial, grid, size, return_confidence)
            return resident.labels(self.interaction, self.classifier, *arguments)
        dictionary, pixels = self.interaction(pixels, pixel_pe, initial)
        return self.classifier.predict(pixels, dictionary, grid, size, return_confidence)

    def load_official_state_dict(self, source: Mapping[str, Tensor] | str | os.PathLike[str]) -> official.LoadReport:
        """Take the weights of the released implementation; see :func:`d2ls_fast.models.official.load`."""
        return official.load(self, source)

    def to_official_state_dict(self) -> dict[str, Tensor]:
        """This head's weights under the released implementation's names (without the parameters it never uses)."""
        return official.export(self)

    def _embed(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, tuple[int, int]]:
        pixels = self.neck(features)
        height, width = features[0].shape[-2:]
        return pixels, self.positions(height, width).to(pixels.dtype), (height, width)

    def _initial_dictionary(self, features: Sequence[Tensor]) -> Tensor:
        if self.dynamic:
            return self.dictionary.dynamic(features[-1])
        return self.dictionary.static(features[-1].shape[0])
