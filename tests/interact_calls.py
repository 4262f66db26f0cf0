"""Calls of interact for its tests: random tensors and parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from d2ls_fast.ops.dictionary_step import Entries, Look, Update
from d2ls_fast.ops.interact import LookUpdate, Refinement, interact_definition


@dataclass(frozen=True)
class Case:
    """One call: shapes and dtype of the pixels; ``last_look`` adds one that belongs to no stage."""

    images: int
    pixels: int
    heads: int
    entries: int
    channels: int
    inner: int
    stages: int
    dtype: torch.dtype = torch.bfloat16
    last_look: bool = True
    shared_pe: bool = True

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, list[LookUpdate], list[Refinement]]:
        """Pixels, encoding, dictionary and parameters: those of the attentions as a linear layer starts with them."""
        b, n, c, i = self.images, self.pixels, self.channels, self.inner
        generator = torch.Generator().manual_seed(100 * n + self.entries)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        def by_field(group: Any) -> Any:
            values = []
            for field in group._fields:
                outward = field.startswith(("out", "norm"))
                if field.endswith("weight") and not field.startswith("norm"):
                    values.append(normal(c, i) / i**0.5 if outward else normal(i, c) / c**0.5)
                else:
                    values.append(0.3 * normal(c if outward else i) + (field == "norm_weight"))
            return group(*values)

        looks = [LookUpdate(by_field(Look), by_field(Update)) for _ in range(self.stages + self.last_look)]
        refinements = [
            Refinement(by_field(Entries), 0.3 * normal(c), 1 + 0.3 * normal(c), 0.3 * normal(c))
            for _ in range(self.stages)
        ]
        pe = normal(n, c) if self.shared_pe else normal(b, n, c)
        return normal(b, n, c).to(self.dtype), pe.to(self.dtype), normal(b, self.entries, c), looks, refinements

    def classifier(self) -> list[Tensor]:
        """Weights and biases of the hypernetwork's three layers, then those of the upsampler's norm."""
        c, generator = self.channels, torch.Generator().manual_seed(self.channels)
        shapes = [(c, c), (c,), (c, c), (c,), (c // 16, c), (c // 16,), (c // 4,), (c // 4,)]
        tensors = [torch.randn(shape, generator=generator) for shape in shapes]
        return [t / c**0.5 if t.dim() == 2 else t for t in tensors]

    def defined(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """By the definition, with the pixels in ``dtype``."""
        pixels, pe, dictionary, looks, refinements = self.arguments()
        wide = torch.promote_types(dtype, torch.float32)
        of_looks = [p.to(wide) for look in looks for part in look for p in part]
        of_stages = [p.to(wide) for each in refinements for p in (*each.entries, *each[1:])]
        tensors = (pixels.to(dtype), pe.to(dtype), dictionary.to(wide))
        return interact_definition(*tensors, of_looks, of_stages, self.heads, 1e-5, True)
