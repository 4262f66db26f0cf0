"""nce_sums and its backward by the CUDA kernels, in their emulator."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from accuracy import assert_accurate
from cuda_emulator import Device
from cuda_emulator_nce import Case, nce_gradients, nce_sums
from torch import Tensor

from d2ls_fast.ops._nce import nce_sums_definition

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SUMS = ["loss", "positive", "log_sum_exp", "count"]
NAMES = ["pixels", "entries"]


def case(
    pixels: int,
    channels: int,
    classes: int,
    dtype: torch.dtype,
    prototypes: int = 1,
    temperature: float = 0.1,
    rows: bool = True,
    columns: bool = True,
) -> Case:
    """Two images; a quarter of the pixels without label, the last class of several absent."""
    generator = torch.Generator().manual_seed(pixels + classes)
    entries = torch.randn(2, classes * prototypes, channels, generator=generator)
    target = torch.randint(0, max(1, classes - 1), (2, pixels), generator=generator)
    own = entries[:, ::prototypes].gather(1, target.unsqueeze(-1).expand(2, pixels, channels))
    x = own + 2 * torch.randn(2, pixels, channels, generator=generator)
    target = target.where(torch.rand(2, pixels, generator=generator) > 0.25, 255)
    target[:, 0] = 0
    entries = torch.nn.functional.normalize(entries, dim=-1) / temperature
    return Case(x.to(dtype), entries, target, prototypes, rows=rows, columns=columns)


def by_definition(of: Case, given: list[Tensor], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """The sums, and the gradients for those of the first three."""
    wide = torch.promote_types(dtype, FP32)
    leaves = [of.pixels.to(dtype).requires_grad_(), of.entries.to(wide).requires_grad_()]
    sums = nce_sums_definition(*leaves, of.target, of.prototypes, of.ignore_index, of.rows, of.columns)
    total = sum((g.to(wide) * s).sum() for g, s in zip(given, sums, strict=False))
    assert isinstance(total, Tensor)
    return [s.detach() for s in sums], list(torch.autograd.grad(total, leaves))


def gradients_of_sums(of: Case) -> list[Tensor]:
    generator = torch.Generator().manual_seed(of.classes)
    return [torch.randn(2, of.classes, generator=generator) for _ in range(3)]


CASES = {
    "one pixel, one class": case(1, 16, 1, FP32),
    "model width": case(75, 256, 7, BF16),
    "rows alone": case(37, 256, 9, FP16, columns=False),
    "columns alone": case(37, 96, 9, FP32, rows=False),
    "prototypes": case(41, 48, 5, FP32, prototypes=3),
    "cold": case(41, 64, 3, FP32, temperature=0.005),
    "many": case(34, 16, 96, BF16),
}


@pytest.mark.parametrize("name", CASES)
def test_sums_and_gradients(name: str) -> None:
    of = CASES[name]
    dtype, given = of.pixels.dtype, gradients_of_sums(of)
    (truth, true_gradients), (plain, plain_gradients) = (by_definition(of, given, d) for d in (torch.float64, dtype))
    sums = nce_sums(of, Device())
    assert torch.equal(sums[3], truth[3].float())
    assert_accurate(SUMS, sums, plain, truth, dtype)
    gradients = nce_gradients(of, sums[2], given, Device())
    score = of.entries.norm(dim=-1).max().item()
    assert_accurate(NAMES, gradients, plain_gradients, true_gradients, dtype, largest_score=2 * score)


def test_orders_give_the_same_bits() -> None:
    of = CASES["model width"]
    given = gradients_of_sums(of)

    def all_of(device: Device) -> list[Tensor]:
        sums = nce_sums(of, device)
        return [*sums, *nce_gradients(of, sums[2], given, device)]

    first = all_of(Device())
    for early, descending in itertools.product((False, True), repeat=2):
        assert all(map(torch.equal, first, all_of(Device(early=early, descending=descending))))
    for a, b in zip(first, all_of(Device(multiprocessors=4)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_an_image_without_labels_a_short_pixel_and_wrong_labels() -> None:
    of = CASES["prototypes"]
    target, pixels = of.target.clone(), of.pixels.clone()
    target[0] = 255
    target[1, 1:4] = torch.tensor([5, -1, 1 << 40])
    pixels[1, 0] *= 1e-15  # labelled; its length, below 1e-12, is no divisor
    of = replace(of, target=target, pixels=pixels)
    given = gradients_of_sums(of)
    sums = nce_sums(of, Device())
    assert not any(s[0].any() for s in sums) and sums[3][1, -1] == 3
    truth, gradients = by_definition(of, given, torch.float64)
    assert_accurate(SUMS, sums, truth, truth, FP32)
    results = nce_gradients(of, sums[2], given, Device())
    # Divided by 1e-12, the short pixel's gradient is so large that it is compared on its own.
    rest = [torch.cat((g[0], g[1, 1:])) for g in (results[0], gradients[0])]
    assert_accurate(
        ["rest", "short", "entries"],
        [rest[0], results[0][1, 0], results[1]],
        *[[rest[1], gradients[0][1, 0], gradients[1]]] * 2,
        FP32,
    )


def test_too_many_entries_are_refused() -> None:
    with pytest.raises(RuntimeError, match="up to 96 entries to contrast, got 97"):
        nce_sums(case(1, 16, 97, BF16), Device())
