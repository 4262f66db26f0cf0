"""All replacements, in the order in which they are tried; a new one is a file of its own and a line here."""

from __future__ import annotations

from d2ls_fast.models.patching.classification import FastClassification
from d2ls_fast.models.patching.dictionary import FastDictionary
from d2ls_fast.models.patching.fast import Fast
from d2ls_fast.models.patching.interaction import FastInteraction
from d2ls_fast.models.patching.mask_decoder import FastMaskDecoder
from d2ls_fast.models.patching.neck import FastNeck
from d2ls_fast.models.patching.two_way import FastTwoWay

RECOGNISERS: tuple[type[Fast], ...] = (
    FastInteraction,
    FastNeck,
    FastDictionary,
    FastClassification,
    FastMaskDecoder,
    FastTwoWay,
)
