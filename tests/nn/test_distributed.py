"""Two processes with half the batch each: the loss of the whole batch, and gradients whose mean is its gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist

from d2ls_fast.models.head import D2LSHead
from d2ls_fast.nn.contrast import PixelDictionaryInfoNCE
from d2ls_fast.nn.distributed import join_batches, sum_over_processes
from d2ls_fast.nn.losses import D2LSLoss

WORLD, BATCH, CLASSES = 2, 4, 4
CHANNELS = [8, 8, 12, 16]


def maps() -> list[Tensor]:
    return [torch.randn(BATCH, c, 8 // 2**i, 8 // 2**i) for i, c in enumerate(CHANNELS)]


def labels(size: int) -> Tensor:
    """The processes' shares differ in every count: labelled pixels, classes present; class 3 is nowhere."""
    target = torch.randint(0, 3, (BATCH, size, size))
    target[:2][target[:2] == 1] = 0
    target[0] = 255
    target[2:, : size // 3] = 255
    return target


def compare(parameters: list[Tensor], joined: Callable[[], Tensor], shared: Callable[[], Tensor]) -> None:
    """``shared`` on this process's part of the batch gives the value and, averaged, the gradients of ``joined``."""
    wanted, got = joined(), shared()
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    whole, part = (torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)]) for total in (wanted, got))
    dist.all_reduce(part)
    # Some gradients are rounding errors of sums that are zero: measured against the largest.
    torch.testing.assert_close(part / WORLD, whole, rtol=1e-5, atol=1e-6 * float(whole.abs().max()))


def training_losses(share: slice) -> None:
    head = D2LSHead(CHANNELS, CLASSES, embed_dim=32, num_heads=2, stages=1, intermediate=True)
    features, target = maps(), labels(32)
    part = [feature[share] for feature in features]
    for compat, weights, keep_logits in itertools.product(
        ("corrected", "release"), (None, [1.0, 3.0, 0.5, 2.0]), (True, False)
    ):
        loss = D2LSLoss(class_weights=weights, compat=compat, intermediate_weight=0.7)  # type: ignore[arg-type]
        assert head.contrast is not None

        def joined(keep_logits: bool = keep_logits, loss: D2LSLoss = loss) -> Tensor:
            head.train().contrast.eval()  # type: ignore[union-attr]
            total, terms = loss.eval()(head(features, keep_logits), target)
            assert len(terms) == 5 and all(terms.values())
            return total

        def shared(keep_logits: bool = keep_logits, loss: D2LSLoss = loss) -> Tensor:
            return loss.train()(head.train()(part, keep_logits), target[share])[0]

        compare(list(head.parameters()), joined, shared)


def contrastive_losses(share: slice) -> None:
    pixels, dictionary = torch.randn(BATCH, 64, 16, requires_grad=True), torch.randn(BATCH, 2 * CLASSES, 16)
    dictionary.requires_grad_()
    target = labels(8)
    for direction, balanced in itertools.product(("pixels", "dictionary", "both"), (False, True)):
        loss = PixelDictionaryInfoNCE(0.2, balanced=balanced, direction=direction, prototypes=2)  # type: ignore[arg-type]
        compare(
            [pixels, dictionary],
            lambda loss=loss: loss.eval()(pixels, dictionary, target),  # type: ignore[misc]
            lambda loss=loss: loss.train()(pixels[share], dictionary[share], target[share]),  # type: ignore[misc]
        )


def worker(rank: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD)
    share = slice(rank * BATCH // WORLD, (rank + 1) * BATCH // WORLD)
    training_losses(share)
    contrastive_losses(share)
    unlabelled = torch.full((2, 8, 8), 255)
    logits = torch.randn(2, CLASSES, 8, 8, requires_grad=True)
    total, _ = D2LSLoss()(logits, unlabelled)
    (2.0**16 * total).backward()
    assert total.item() == 0.0 and logits.grad is not None and not logits.grad.any()
    dist.destroy_process_group()


def test_two_processes_have_the_loss_and_the_gradients_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(worker, args=(str(tmp_path / "rendezvous"),), nprocs=WORLD)


def test_one_process_communicates_nothing() -> None:
    tensor = torch.ones(2, requires_grad=True)
    assert sum_over_processes([tensor])[0] is tensor and join_batches(tensor) is tensor
