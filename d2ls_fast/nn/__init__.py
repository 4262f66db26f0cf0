"""The parts of D2LS as modules: usable alone, in any model."""

from d2ls_fast.nn.classifier import PixelClassifier, PixelScores
from d2ls_fast.nn.contrast import PixelDictionaryInfoNCE, RatioContrastiveLoss, labels_on_grid
from d2ls_fast.nn.cross_attention import CrossAttention
from d2ls_fast.nn.dictionary import ClassDictionary, MixtureWeights
from d2ls_fast.nn.interaction import AlternatingCrossAttention
from d2ls_fast.nn.losses import D2LSLoss
from d2ls_fast.nn.position import RandomFourierPositions
from d2ls_fast.nn.pyramid import PyramidNeck
from d2ls_fast.nn.segmentation import dice_loss, soft_cross_entropy

__all__ = [
    "AlternatingCrossAttention",
    "ClassDictionary",
    "CrossAttention",
    "D2LSLoss",
    "MixtureWeights",
    "PixelClassifier",
    "PixelDictionaryInfoNCE",
    "PixelScores",
    "PyramidNeck",
    "RandomFourierPositions",
    "RatioContrastiveLoss",
    "dice_loss",
    "labels_on_grid",
    "soft_cross_entropy",
]
