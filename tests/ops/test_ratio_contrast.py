"""ratio_contrast: kernel against the definition, gradients, and its standing in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accuracy import assert_accurate
from torch import Tensor

from d2ls_fast.backends import backend, backends
from d2ls_fast.ops import ratio_contrast
from d2ls_fast.ops.ratio_contrast import plain_backward, ratio_contrast_definition

KERNEL = "cpu" if backends()["cpu"] == "available" else "torch"
NAMES = ["loss", "grad_dictionary"]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def run(function: Callable[..., Tensor], dictionary: Tensor, dtype: torch.dtype, *options: Any) -> list[Tensor]:
    leaf = dictionary.detach().to(dtype).requires_grad_()
    loss = function(leaf, *options)
    (3 * loss).backward()
    assert leaf.grad is not None and leaf.grad.dtype is dtype
    return [loss.detach(), leaf.grad]


def under(name: str, *arguments: Any) -> list[Tensor]:
    with backend(name):
        return run(ratio_contrast, *arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 2, 1), (3, 7, 64), (5, 19, 33), (2, 150, 256), (4, 16, 1023), (1, 5, 16)])
def test_kernel_is_as_accurate_as_the_unfused_path(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    dictionary = random(*shape).to(dtype)
    truth = under("reference", dictionary, torch.float64)
    plain = under("reference", dictionary, dtype)
    results = under(KERNEL, dictionary, dtype)
    assert results[0].dtype is torch.float32 and results[0].shape == ()
    assert_accurate(NAMES, results, plain, truth, dtype)


@pytest.mark.parametrize("name", ["torch", KERNEL])
@pytest.mark.parametrize("shape", [(1, 4, 8), (3, 1, 8), (1, 1, 1)])
def test_zero_where_there_is_nothing_to_compare(name: str, shape: tuple[int, int, int]) -> None:
    loss, grad = under(name, random(*shape), torch.float32)
    assert loss == 0.0 and not grad.any()


def test_equal_entries_fall_back_to_eps() -> None:
    dictionary = random(3, 1, 8).expand(3, 5, 8) * 1e-3
    truth = under("reference", dictionary, torch.float64, 1e-3)
    results = under(KERNEL, dictionary, torch.float32, 1e-3)
    assert_accurate(NAMES, results, under("reference", dictionary, torch.float32, 1e-3), truth, torch.float32)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_extreme_magnitudes_stay_finite_and_right(scale: float) -> None:
    dictionary = random(3, 7, 33) * scale
    truth = under("reference", dictionary, torch.float64)
    plain = under("reference", dictionary, torch.float32)
    assert_accurate(NAMES, under(KERNEL, dictionary, torch.float32), plain, truth, torch.float32)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 1, 3)])
def test_definition_and_plain_backward_have_right_gradients(shape: tuple[int, int, int]) -> None:
    leaf = random(*shape).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda d: ratio_contrast(d, 1e-2), [leaf])
    loss = ratio_contrast_definition(leaf, 1e-2)
    loss.backward(torch.tensor(1.7, dtype=torch.float64))
    result = plain_backward(leaf.detach(), torch.tensor(1.7, dtype=torch.float64), 1e-2)
    torch.testing.assert_close(result, leaf.grad, rtol=1e-12, atol=1e-12)


def test_non_contiguous_input_and_repeats() -> None:
    dictionary = random(3, 5, 16)
    first = run(ratio_contrast, dictionary, torch.float32)
    leaf = dictionary.permute(2, 0, 1).contiguous().requires_grad_()
    loss = ratio_contrast(leaf.permute(1, 2, 0))
    (3 * loss).backward()
    assert torch.equal(loss, first[0]) and torch.equal(leaf.grad.permute(1, 2, 0), first[1])
    for _ in range(50):
        assert all(
            torch.equal(a, b) for a, b in zip(first, run(ratio_contrast, dictionary, torch.float32), strict=True)
        )


def test_opcheck() -> None:
    dictionary = random(2, 4, 8)
    torch.library.opcheck(torch.ops.d2ls_fast.ratio_contrast.default, (dictionary.requires_grad_(), 1e-6))
    arguments = (dictionary.detach(), torch.tensor(0.5), 1e-6)
    torch.library.opcheck(torch.ops.d2ls_fast.ratio_contrast_backward.default, arguments)


@pytest.mark.parametrize(
    ("name", "dynamic", "compiler"),
    [("torch", True, "aot_eager"), (KERNEL, False, "aot_eager"), (KERNEL, True, "inductor")],
)
def test_compiles_whole(name: str, dynamic: bool, compiler: str) -> None:
    torch._dynamo.reset()
    with backend(name):
        compiled = torch.compile(ratio_contrast, fullgraph=True, dynamic=dynamic, backend=compiler)
        for shape in ((2, 4, 8), (3, 7, 16)) if dynamic else ((2, 4, 8),):
            results = run(compiled, random(*shape), torch.float32)
            for result, expected in zip(results, under(name, random(*shape), torch.float32), strict=True):
                torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_autocast_changes_nothing() -> None:
    dictionary = random(3, 5, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ratio_contrast(dictionary)
    assert loss.dtype is torch.float32 and torch.equal(loss, ratio_contrast(dictionary))


def test_wrong_calls_name_the_argument() -> None:
    good = random(2, 3, 8)
    for bad in (good[0], good[:, :0], good.long()):
        with pytest.raises(ValueError, match="ratio_contrast: dictionary must be"):
            ratio_contrast(bad)
    for eps in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="ratio_contrast: eps must be positive and finite"):
            ratio_contrast(good, eps)
