"""dictionary_step as a middle stage of the interaction has it: update, entries and the following look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from d2ls_fast.benchmarks.cases.common import EMBED, HEADS, Sizes, cases_for, random
from d2ls_fast.benchmarks.harness import Case
from d2ls_fast.nn.interaction import AlternatingCrossAttention, InteractionStage


def cases(sizes: Sizes) -> list[Case]:
    """From attend's context to the next dictionary and the folded rows of the next pass, forward and backward."""
    generator = sizes.generator()
    torch.manual_seed(0)
    b, k, c = sizes.batch, sizes.num_classes, EMBED
    module = AlternatingCrossAttention(c, HEADS, stages=1).to(sizes.device, sizes.dtype)
    inputs = [random(generator, sizes, *shape) for shape in ((b, k, c), (b, k, c), (b, HEADS * k, c))]

    def call(layer: nn.Module, dictionary: Tensor, position: Tensor, context: Tensor) -> Sequence[Tensor]:
        interaction = cast("AlternatingCrossAttention", layer)
        stage = cast("InteractionStage", interaction.layers[0])
        return stage.step(dictionary, position, context, interaction.final_attention, dictionary.dtype)

    product, matrix = 2 * b * k * c * (c // 2), c * (c // 2) * inputs[0].element_size()
    return cases_for(
        "dictionary_step",
        sizes,
        module,
        call,
        inputs,
        forward_cost=(8 * matrix, 8 * product),
        both_cost=(24 * matrix, 29 * product),
    )
