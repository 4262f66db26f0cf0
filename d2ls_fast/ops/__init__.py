"""The operators: what is computed. One file each, with its definition, schema, fake, gradient and dispatch."""

from d2ls_fast.ops.attend import attend
from d2ls_fast.ops.attend_projected import attend_projected
from d2ls_fast.ops.classify import classify, classify_labels
from d2ls_fast.ops.refine import refine
from d2ls_fast.ops.refine_attend import refine_attend
from d2ls_fast.ops.refine_projected import refine_projected

__all__ = [
    "attend",
    "attend_projected",
    "classify",
    "classify_labels",
    "refine",
    "refine_attend",
    "refine_projected",
]
