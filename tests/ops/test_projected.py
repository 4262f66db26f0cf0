"""attend_projected and refine_projected: kernels against the definition, every gradient, their standing in PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accuracy import assert_accurate
from torch import Tensor

from d2ls_fast.backends import backend, backends
from d2ls_fast.ops import attend_projected, refine_projected
from d2ls_fast.ops._refine_projected import plain_backward as refine_backward
from d2ls_fast.ops._refine_projected import refine_projected_definition
from d2ls_fast.ops.attend_projected import attend_projected_definition
from d2ls_fast.ops.attend_projected import plain_backward as attend_backward

KERNEL = "cpu" if backends()["cpu"] == "available" else "torch"
ATTEND = ["pixels", "pixel_pe", "query", "key_weight", "value_weight"]
REFINE = ["pixels", "pixel_pe", "key", "value", "query_weight", "query_bias", "out_weight", "out_bias"]
REFINE += ["norm_weight", "norm_bias"]
OPERATORS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "attend_projected": (attend_projected, ATTEND),
    "refine_projected": (refine_projected, REFINE),
}


def inputs(b: int, n: int, heads: int, k: int, d: int, c: int, shared_pe: bool = True, g: int = 1) -> dict[str, Tensor]:
    """d is the width of all heads together."""
    generator = torch.Generator().manual_seed(100 * n + k)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    scale = (d / heads) ** -0.5
    return {
        "pixels": random(b, n, c),
        "pixel_pe": random(*((n, c) if shared_pe else (b, n, c))),
        "query": random(g * b, k, d) * scale,
        "key_weight": random(d, c) * c**-0.5,
        "value_weight": random(d, c) * c**-0.5,
        "key": random(g * b, k, d) * scale,
        "value": random(g * b, k, d),
        "query_weight": random(d, c) * c**-0.5,
        "query_bias": random(d) * 0.3,
        "out_weight": random(c, d) * d**-0.5,
        "out_bias": random(c),
        "norm_weight": 1 + 0.1 * random(c),
        "norm_bias": random(c),
    }


def cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The pixels in the dtype, everything else in the precision of the sums."""
    wide = torch.promote_types(dtype, torch.float32)
    return {name: t.to(dtype if name.startswith("pixel") else wide) for name, t in tensors.items()}


def run(
    function: Callable[..., Any], names: list[str], tensors: dict[str, Tensor], heads: int, dtype: torch.dtype
) -> list[Tensor]:
    """The result and the gradient of every input."""
    leaves = {name: t.detach().requires_grad_() for name, t in cast(tensors, dtype).items() if name in names}
    output = function(*(leaves[name] for name in names), heads)
    generator = torch.Generator().manual_seed(7)
    output.backward(torch.randn(output.shape, generator=generator).to(output))
    return [output.detach(), *(leaves[name].grad for name in names)]


def under(name: str, operator: str, tensors: dict[str, Tensor], heads: int, dtype: torch.dtype) -> list[Tensor]:
    with backend(name):
        return run(*OPERATORS[operator], tensors, heads, dtype)


@pytest.mark.parametrize("operator", list(OPERATORS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("b", "n", "heads", "k", "d", "c", "shared_pe", "g"),
    [
        (2, 113, 8, 150, 128, 256, True, 1),
        (4, 203, 2, 5, 50, 100, False, 2),
        (1, 1023, 3, 16, 48, 96, True, 1),
        (1, 300, 8, 2, 512, 1024, True, 1),
        (5, 70, 1, 19, 20, 40, False, 3),
        (1, 16384, 4, 19, 32, 64, False, 1),
    ],
)
def test_kernel_is_as_accurate_as_the_unfused_path(operator, b, n, heads, k, d, c, shared_pe, g, dtype) -> None:
    tensors = cast(inputs(b, n, heads, k, d, c, shared_pe, g), dtype)
    truth = under("reference", operator, tensors, heads, torch.float64)
    plain = under("reference", operator, tensors, heads, dtype)
    results = under(KERNEL, operator, tensors, heads, dtype)
    labels = ["result", *(f"grad_{name}" for name in OPERATORS[operator][1])]
    assert [r.dtype for r in results] == [p.dtype for p in plain]
    assert_accurate(labels, results, plain, truth, dtype)


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_every_instruction_set_is_accurate(isa: str) -> None:
    """The set is chosen once a process, so another process runs the accuracy tests with it."""
    options = ["-q", "-p", "no:cacheprovider", __file__, "-k", "as_accurate and (113 or 203 or 70)"]
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        env={**os.environ, "D2LS_FAST_ISA": isa}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout[-2000:]


@pytest.mark.parametrize("operator", list(OPERATORS))
@pytest.mark.parametrize("g", [1, 2])
def test_library_form_equals_the_definition(operator: str, g: int) -> None:
    tensors = inputs(2, 40, 4, 6, 32, 64, g=g)
    truth = under("reference", operator, tensors, 4, torch.float64)
    for result, expected in zip(under("torch", operator, tensors, 4, torch.float64), truth, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("operator", list(OPERATORS))
def test_groups_are_separate_dictionaries_over_the_same_pixels(operator: str) -> None:
    tensors = inputs(2, 90, 4, 6, 32, 64, g=3)
    together = run(*OPERATORS[operator], tensors, 4, torch.float32)[0]
    rows = ("query", "key", "value")
    for g in range(3):
        alone = {name: t[2 * g : 2 * g + 2] if name in rows else t for name, t in tensors.items()}
        expected = run(*OPERATORS[operator], alone, 4, torch.float32)[0]
        torch.testing.assert_close(together[2 * g : 2 * g + 2], expected, rtol=1e-5, atol=1e-5)


def test_one_pixel_leaves_no_choice() -> None:
    """N = 1: every entry takes the one value; what only moves the scores gets no gradient but rounding errors."""
    tensors = inputs(2, 1, 8, 7, 32, 64)
    truth = under("reference", "attend_projected", tensors, 8, torch.float64)
    results = under(KERNEL, "attend_projected", tensors, 8, torch.float32)
    for result, expected in zip(results, truth, strict=True):
        torch.testing.assert_close(result, expected.float(), rtol=1e-5, atol=1e-5)
    truth = under("reference", "refine_projected", tensors, 8, torch.float64)
    results = under(KERNEL, "refine_projected", tensors, 8, torch.float32)
    plain = under("reference", "refine_projected", tensors, 8, torch.float32)
    assert_accurate(["result", *REFINE], results, plain, truth, torch.float32)


def test_one_entry_leaves_no_choice() -> None:
    """K = 1: every pixel takes the one value; the kernel gives key, query and their bias exactly no gradient."""
    tensors = inputs(2, 70, 8, 1, 32, 64)
    truth = under("reference", "refine_projected", tensors, 8, torch.float64)
    results = under(KERNEL, "refine_projected", tensors, 8, torch.float32)
    for result, expected in zip(results, truth, strict=True):
        torch.testing.assert_close(result, expected.float(), rtol=1e-4, atol=1e-4)
    for name in ("key", "query_weight", "query_bias"):
        assert results[1 + REFINE.index(name)].abs().max() <= (0 if KERNEL == "cpu" else 1e-4)


@pytest.mark.parametrize("operator", list(OPERATORS))
def test_definition_has_right_gradients(operator: str) -> None:
    function, names = OPERATORS[operator]
    tensors = cast(inputs(1, 5, 2, 3, 4, 6, g=2), torch.float64)
    with backend("reference"):
        assert torch.autograd.gradcheck(lambda *t: function(*t, 2), [tensors[name].requires_grad_() for name in names])


@pytest.mark.parametrize("shared_pe", [True, False])
def test_plain_backward_formulas_have_right_gradients(shared_pe: bool) -> None:
    tensors = cast(inputs(2, 9, 2, 3, 8, 12, shared_pe), torch.float64)
    leaves = [tensors[name].requires_grad_() for name in ATTEND]
    outputs = attend_projected_definition(*leaves, 2)
    generator = torch.Generator().manual_seed(7)
    grads = [torch.randn(o.shape, generator=generator).double() for o in outputs]
    expected = torch.autograd.grad(outputs, leaves, grads)
    with torch.no_grad():
        results = attend_backward(*leaves, *outputs, *grads, 2, True)
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-11, atol=1e-11)

    tensors = cast(inputs(2, 9, 2, 3, 8, 12, shared_pe, g=2), torch.float64)
    leaves = [tensors[name].requires_grad_() for name in REFINE]
    output = refine_projected_definition(*leaves, 2, 1e-5)
    grad = torch.randn(output.shape, generator=generator).double()
    expected = torch.autograd.grad(output, leaves, grad)
    with torch.no_grad():
        results = refine_backward(*leaves, grad, 2, 1e-5, True)
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-11, atol=1e-11)


def test_log_sum_exp_has_a_gradient() -> None:
    tensors = [inputs(2, 77, 4, 6, 32, 64)[name] for name in ATTEND]

    def gradients(function: Callable[..., Any], leaves: list[Tensor]) -> tuple[Tensor, ...]:
        leaves = [t.requires_grad_() for t in leaves]
        log_sum_exp = function(*leaves, 4)[1]
        weights = torch.linspace(-1, 1, log_sum_exp.numel()).view_as(log_sum_exp).to(log_sum_exp)
        return torch.autograd.grad(log_sum_exp, leaves[:4], weights)

    truth = gradients(attend_projected_definition, [t.double() for t in tensors])
    results = gradients(torch.ops.d2ls_fast.attend_projected, [t.clone() for t in tensors])
    for result, wanted in zip(results, truth, strict=True):
        torch.testing.assert_close(result, wanted.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("operator", list(OPERATORS))
def test_extreme_scores_stay_finite(operator: str, dtype: torch.dtype) -> None:
    tensors = inputs(1, 200, 4, 7, 32, 64)
    tensors["key"] *= 1e4
    tensors["query"] *= -1e4
    results = run(*OPERATORS[operator], tensors, 4, dtype)
    assert all(torch.isfinite(r).all() for r in results)


@pytest.mark.parametrize("operator", list(OPERATORS))
def test_fifty_runs_are_bitwise_equal_for_any_number_of_threads(operator: str) -> None:
    tensors, threads = inputs(2, 700, 4, 6, 32, 64, g=2), torch.get_num_threads()
    first = run(*OPERATORS[operator], tensors, 4, torch.float32)
    try:
        for repeat in range(50):
            torch.set_num_threads(1 + repeat % 3 if KERNEL == "cpu" else threads)
            again = run(*OPERATORS[operator], tensors, 4, torch.float32)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("operator", list(OPERATORS))
def test_non_contiguous_inputs(operator: str) -> None:
    function, names = OPERATORS[operator]
    tensors = inputs(2, 60, 4, 6, 32, 64)
    wanted = run(function, names, tensors, 4, torch.float32)
    for name in names:
        if tensors[name].dim() > 1:
            tensors[name] = tensors[name].transpose(-1, -2).contiguous().transpose(-1, -2)
    for result, expected in zip(run(function, names, tensors, 4, torch.float32), wanted, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-4)
    leaves = [tensors[name].requires_grad_() for name in names]
    function(*leaves, 4).sum().backward()  # a gradient of stride 0
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


def test_parameters_may_be_narrower_than_float32() -> None:
    for function, names in OPERATORS.values():
        tensors = inputs(1, 30, 4, 6, 32, 64)
        leaves = [tensors[name].bfloat16().requires_grad_() for name in names]
        function(*leaves, 4).sum().backward()
        assert all(leaf.grad.dtype is torch.bfloat16 and leaf.grad.isfinite().all() for leaf in leaves)


def test_opcheck() -> None:
    tensors = cast(inputs(2, 20, 4, 3, 32, 64), torch.bfloat16)
    operators = torch.ops.d2ls_fast
    leaves = [tensors[name].requires_grad_() for name in ATTEND]
    torch.library.opcheck(operators.attend_projected.default, (*leaves, 4))
    plain = [t.detach() for t in leaves]
    outputs = operators.attend_projected(*plain, 4)
    torch.library.opcheck(
        operators.attend_projected_backward.default, (*plain, *outputs, *map(torch.ones_like, outputs), 4, True)
    )
    tensors = cast(inputs(2, 20, 4, 3, 32, 64, g=2), torch.bfloat16)
    leaves = [tensors[name].requires_grad_() for name in REFINE]
    torch.library.opcheck(operators.refine_projected.default, (*leaves, 4, 1e-5))
    plain = [t.detach() for t in leaves]
    refined = operators.refine_projected(*plain, 4, 1e-5)
    torch.library.opcheck(operators.refine_projected_backward.default, (*plain, refined, 4, 1e-5, False))


@pytest.mark.parametrize(("name", "compiler"), [("torch", "aot_eager"), (KERNEL, "inductor")])
@pytest.mark.parametrize("operator", list(OPERATORS))
def test_compiles_whole(name: str, compiler: str, operator: str) -> None:
    function, names = OPERATORS[operator]
    torch._dynamo.reset()
    with backend(name):
        compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=compiler)
        for n, k in ((60, 5), (113, 9)):
            tensors = inputs(2, n, 4, k, 32, 64)
            results = run(compiled, names, tensors, 4, torch.float32)
            for result, expected in zip(results, run(function, names, tensors, 4, torch.float32), strict=True):
                torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operator", list(OPERATORS))
def test_autocast_casts_the_pixels_only(operator: str) -> None:
    function, names = OPERATORS[operator]
    tensors = [inputs(1, 64, 4, 6, 32, 64)[name] for name in names]
    expected = function(*(t.bfloat16() for t in tensors[:2]), *tensors[2:], 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(function(*tensors, 4), expected)


@pytest.mark.parametrize("operator", list(OPERATORS))
def test_wrong_calls_name_the_argument(operator: str) -> None:
    function, names = OPERATORS[operator]
    good = inputs(2, 10, 4, 3, 16, 24)
    rows = names[2]
    wrong = {
        "pixels must be": {"pixels": good["pixels"][0]},
        "not be empty": {"pixels": good["pixels"][:, :0], "pixel_pe": good["pixel_pe"][:0]},
        "pixel_pe must be": {"pixel_pe": good["pixel_pe"][:5]},
        rf"{rows} must be \[G \* 2, K, D\]": {rows: good[rows][:1]},
        f"{rows} must be .* not empty": {rows: good[rows][:, :0]},
        f"num_heads must divide the width 15 of {rows}": {rows: good[rows][..., :15]},
        f"{rows} must be on the device": {rows: good[rows].to("meta")},
    }
    wrong |= {f"{name} must be": {name: good[name][1:]} for name in names[3:]}
    for message, change in wrong.items():
        with pytest.raises(ValueError, match=f"{operator}: .*{message}"):
            function(*({**good, **change}[name] for name in names), 4)
    for heads in (0, 3):
        with pytest.raises(ValueError, match="num_heads must divide"):
            function(*(good[name] for name in names), heads)
