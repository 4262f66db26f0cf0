"""The operators: what is computed. One file each, with its definition, schema, fake, gradient and dispatch."""

from d2ls_fast.ops.attend import attend
from d2ls_fast.ops.attend_projected import attend_projected
from d2ls_fast.ops.classify import classify, classify_labels
from d2ls_fast.ops.dictionary_step import dictionary_step
from d2ls_fast.ops.fuse_pyramid import fuse_pyramid
from d2ls_fast.ops.interact import interact
from d2ls_fast.ops.interact_labels import interact_labels
from d2ls_fast.ops.pixel_dictionary_nce import pixel_dictionary_nce
from d2ls_fast.ops.ratio_contrast import ratio_contrast
from d2ls_fast.ops.refine import refine
from d2ls_fast.ops.refine_attend import refine_attend
from d2ls_fast.ops.refine_projected import refine_projected
from d2ls_fast.ops.segmentation_loss import segmentation_loss

__all__ = [
    "attend",
    "attend_projected",
    "classify",
    "classify_labels",
    "dictionary_step",
    "fuse_pyramid",
    "interact",
    "interact_labels",
    "pixel_dictionary_nce",
    "ratio_contrast",
    "refine",
    "refine_attend",
    "refine_projected",
    "segmentation_loss",
]
