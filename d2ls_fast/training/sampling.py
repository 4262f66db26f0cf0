"""The stream of training items of a whole run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from d2ls_fast.data import Item, TrainCrops


class TrainingStream(Dataset[Item]):
    """Item ``p`` of a run: one shuffled pass over ``items`` after another, every draw seeded by ``seed`` and ``p``.

    What position ``p`` gives does not depend on the number of workers or on where the run was started, so that a
    resumed run sees exactly what the uninterrupted one would have seen.

    Args:
        items: random crops that draw from torch's default generator.
        total: items of the whole run.
        seed: of the order, of the crops and of their sizes.
        per_step: items of one optimizer step.

    With ``augment.batch_sizes`` every item of a step has the same crop size, which ``seed`` and the step number decide.
    """

    def __init__(self, items: TrainCrops, total: int, seed: int, per_step: int = 1) -> None:
        self.items = items
        self.total = total
        self.seed = seed
        self.per_step = per_step
        self._epoch = -1
        self._order: Sequence[int] = ()

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, position: int) -> Item:
        epoch, offset = divmod(position, len(self.items))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
            self._epoch, self._order = epoch, torch.randperm(len(self.items), generator=generator).tolist()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_mix(self.seed + 1, position))
            return self.items.item(self._order[offset], self.crop_size(position // self.per_step))

    def crop_size(self, step: int) -> int:
        """Side of the crops of optimizer step ``step``, counted from 0."""
        sizes = self.items.settings.batch_sizes
        return self.items.settings.crop if sizes is None else sizes[_mix(self.seed + 3, step) % len(sizes)]


def seed_batch(seed: int, number: int) -> None:
    """Seed torch's default generators for batch ``number`` of a run: what dropout draws depends on nothing earlier."""
    torch.manual_seed(_mix(seed + 2, number))


def _mix(seed: int, number: int) -> int:
    """A seed from two numbers such that neighbours share nothing (splitmix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + number + 1) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return (value ^ value >> 31) % 2**63
