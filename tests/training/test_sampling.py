"""The stream of training items: the same whatever the start and the number of workers."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from d2ls_fast.data import AugmentSettings
from d2ls_fast.training.parallel import Processes, RankShare
from d2ls_fast.training.sampling import TrainingStream


class Draws:
    """Stands for the random crops: returns its index, the crop size and a draw from torch's default generator."""

    def __init__(self, sizes: list[int] | None = None) -> None:
        self.settings = AugmentSettings(crop=32, batch_sizes=sizes)

    def __len__(self) -> int:
        return 5

    def item(self, index: int, crop: int) -> Any:
        return {"index": index, "crop": crop, "draw": torch.rand(())}


def _take(start: int, workers: int = 0, seed: int = 3) -> list[tuple[int, float]]:
    stream = TrainingStream(Draws(), total=17, seed=seed)  # type: ignore[arg-type]
    loader = DataLoader(stream, batch_size=1, sampler=range(start, 17), num_workers=workers)
    return [(int(item["index"]), float(item["draw"])) for item in loader]


def _sizes(start: int, workers: int = 0, seed: int = 3, batch_size: int = 2) -> list[list[int]]:
    """The crop sizes of each batch, two batches a step, from item ``start`` on."""
    stream = TrainingStream(Draws([64, 96, 128]), total=240, seed=seed, per_step=4)  # type: ignore[arg-type]
    loader = DataLoader(stream, batch_size=batch_size, sampler=range(start, 240), num_workers=workers)
    return [batch["crop"].tolist() for batch in loader]


def test_a_step_has_one_crop_size_of_the_set() -> None:
    steps = _sizes(0, batch_size=4)
    assert all(len(set(step)) == 1 for step in steps)
    drawn = [step[0] for step in steps]
    assert {drawn.count(size) > 10 for size in (64, 96, 128)} == {True}
    assert drawn != [step[0] for step in _sizes(0, batch_size=4, seed=4)]
    assert {item["crop"] for item in DataLoader(TrainingStream(Draws(), 9, 3), None)} == {32}  # type: ignore[arg-type]


def test_crop_sizes_do_not_depend_on_start_workers_or_accumulation() -> None:
    whole = _sizes(0)
    assert _sizes(80) == whole[40:] and _sizes(0, workers=2) == whole
    assert [first + second for first, second in zip(whole[::2], whole[1::2], strict=True)] == _sizes(0, batch_size=4)


def test_all_processes_have_the_crop_size_of_the_step() -> None:
    def sizes(rank: int) -> list[int]:
        processes = Processes(rank, 2, 2)
        share = RankShare(16, 240, 2, processes)
        stream = TrainingStream(Draws([64, 96, 128]), 240, 3, per_step=4)  # type: ignore[arg-type]
        return [int(size) for batch in DataLoader(stream, batch_size=2, sampler=share) for size in batch["crop"]]

    assert sizes(0) == sizes(1) and len(set(sizes(0))) == 3


def test_every_pass_shows_every_item_once_in_another_order() -> None:
    indices = [index for index, _ in _take(0)]
    assert sorted(indices[:5]) == sorted(indices[5:10]) == sorted(indices[10:15]) == [0, 1, 2, 3, 4]
    assert indices[:5] != indices[5:10] or indices[5:10] != indices[10:15]


def test_draws_differ_between_positions_and_seeds() -> None:
    draws = [draw for _, draw in _take(0)]
    assert len(set(draws)) == len(draws)
    assert draws != [draw for _, draw in _take(0, seed=4)]


def test_a_later_start_and_workers_change_nothing() -> None:
    assert _take(7) == _take(0)[7:]
    assert _take(0, workers=2) == _take(0)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    TrainingStream(Draws(), total=3, seed=0)[1]  # type: ignore[arg-type]
    assert torch.equal(torch.rand(3), expected)
