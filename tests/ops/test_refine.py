"""refine and refine_attend: kernels against the definition, every gradient, and their standing in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accuracy import assert_accurate
from torch import Tensor

from d2ls_fast.backends import backend, backends
from d2ls_fast.ops import refine, refine_attend
from d2ls_fast.ops._refine import plain_backward
from d2ls_fast.ops.refine import refine_definition
from d2ls_fast.ops.refine_attend import refine_attend_definition

KERNEL = "cpu" if backends()["cpu"] == "available" else "torch"
LOW = ("pixels", "pixel_pe", "key", "value", "query")  # in the dtype of pixels; the vectors are float32
REFINE = ["pixels", "pixel_pe", "key", "key_bias", "value", "out_bias", "norm_weight", "norm_bias"]
WHOLE = [*REFINE, "query"]


def inputs(
    b: int, n: int, heads: int, k: int, rows: int, c: int, shared_pe: bool = True, dictionaries: int = 1
) -> dict[str, Tensor]:
    g = dictionaries * b
    generator = torch.Generator().manual_seed(100 * n + k)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "pixels": random(b, n, c),
        "pixel_pe": random(*((n, c) if shared_pe else (b, n, c))),
        "key": random(g, heads * k, c) * c**-0.5,
        "key_bias": random(g, heads * k),
        "value": random(g, heads * k, c) * 0.3,
        "out_bias": random(c),
        "norm_weight": 1 + 0.1 * random(c),
        "norm_bias": random(c),
        "query": random(g, rows, c) * c**-0.5,
    }


def cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    wide = torch.promote_types(dtype, torch.float32)
    return {name: t.to(dtype if name in LOW else wide) for name, t in tensors.items()}


def run(
    function: Callable[..., Any], names: list[str], tensors: dict[str, Tensor], heads: int, dtype: torch.dtype
) -> list[Tensor]:
    """Outputs and the gradient of every input."""
    leaves = {name: t.detach().requires_grad_() for name, t in cast(tensors, dtype).items() if name in names}
    outputs = function(*(leaves[name] for name in names), heads, 1e-5)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    generator = torch.Generator().manual_seed(7)
    torch.autograd.backward(outputs, [torch.randn(o.shape, generator=generator).to(o) for o in outputs])
    return [*(o.detach() for o in outputs), *(leaves[name].grad for name in names)]


OPERATORS = {
    "refine": (refine, refine_definition, REFINE, ["refined"]),
    "refine_attend": (refine_attend, refine_attend_definition, WHOLE, ["refined", "context", "log_sum_exp"]),
}


@pytest.mark.parametrize("operator", list(OPERATORS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("b", "n", "heads", "k", "rows", "c", "shared_pe", "dictionaries"),
    [
        (1, 1, 8, 7, 5, 64, True, 1),
        (2, 113, 8, 7, 56, 256, True, 1),
        (4, 203, 2, 5, 16, 100, False, 1),
        (1, 1023, 3, 16, 9, 96, True, 1),
        (2, 300, 8, 2, 16, 1024, True, 1),
        (1, 150, 4, 150, 19, 64, True, 1),
        (5, 67, 3, 1, 5, 37, True, 1),
        (1, 16384, 4, 19, 40, 64, False, 1),
        (1, 1, 1, 1, 1, 64, True, 2),
        (2, 700, 8, 7, 56, 256, True, 2),
        (2, 203, 3, 5, 16, 100, False, 3),
    ],
)
def test_kernel_is_as_accurate_as_the_unfused_path(
    operator, b, n, heads, k, rows, c, shared_pe, dictionaries, dtype
) -> None:
    function, definition, names, outputs = OPERATORS[operator]
    tensors = cast(inputs(b, n, heads, k, rows, c, shared_pe, dictionaries), dtype)
    truth = run(definition, names, tensors, heads, torch.float64)
    plain = run(definition, names, tensors, heads, dtype)
    with backend(KERNEL):
        results = run(function, names, tensors, heads, dtype)
    labels = [*outputs, *(f"grad_{name}" for name in names)]
    assert_accurate(labels, results, plain, truth, dtype)


@pytest.mark.parametrize("operator", list(OPERATORS))
@pytest.mark.parametrize("shared_pe", [True, False])
@pytest.mark.parametrize("name", ["torch", KERNEL])
def test_dictionaries_stacked_are_as_many_calls(operator: str, shared_pe: bool, name: str) -> None:
    function, _, names, outputs = OPERATORS[operator]
    tensors = inputs(2, 300, 2, 3, 6, 32, shared_pe, dictionaries=3)
    of_dictionary = ("key", "key_bias", "value", "query")
    with backend(name):
        together = function(*(tensors[name] for name in names), 2)
        for g in range(3):
            own = {n: t[2 * g : 2 * g + 2] if n in of_dictionary else t for n, t in tensors.items()}
            alone = function(*(own[name] for name in names), 2)
            for whole, part in zip(together, alone, strict=True) if len(outputs) > 1 else [(together, alone)]:
                torch.testing.assert_close(whole[2 * g : 2 * g + 2], part, rtol=1e-5, atol=1e-5)


def test_one_entry_leaves_no_choice() -> None:
    """K = 1: every pixel takes the one value; key and its bias get exactly no gradient."""
    tensors = inputs(2, 70, 8, 1, 8, 64)
    results = run(refine_attend, WHOLE, tensors, 8, torch.float32)
    truth = run(refine_attend_definition, WHOLE, tensors, 8, torch.float64)
    torch.testing.assert_close(results[0], truth[0].float(), rtol=1e-5, atol=1e-5)
    for name in ("key", "key_bias"):
        assert results[3 + WHOLE.index(name)].abs().max() == 0


@pytest.mark.parametrize("dictionaries", [1, 2])
def test_definitions_have_right_gradients(dictionaries: int) -> None:
    tensors = cast(inputs(2, 6, 2, 3, 4, 8, dictionaries == 1, dictionaries), torch.float64)
    leaves = [tensors[name].requires_grad_() for name in WHOLE]
    assert torch.autograd.gradcheck(lambda *t: refine_attend(*t, 2), leaves)
    assert torch.autograd.gradcheck(lambda *t: refine(*t, 2), leaves[:-1])


@pytest.mark.parametrize("with_query", [True, False])
@pytest.mark.parametrize("shared_pe", [True, False])
@pytest.mark.parametrize("dictionaries", [1, 3])
def test_plain_backward_formulas_have_right_gradients(with_query: bool, shared_pe: bool, dictionaries: int) -> None:
    _, definition, names, outputs = OPERATORS["refine_attend" if with_query else "refine"]
    tensors = cast(inputs(2, 9, 2, 3, 4, 8, shared_pe, dictionaries), torch.float64)
    truth = run(definition, names, tensors, 2, torch.float64)
    generator = torch.Generator().manual_seed(7)
    count = len(outputs)
    grads = [torch.randn(t.shape, generator=generator).double() for t in truth[:count]]
    saved = truth[1:3] if with_query else [None, None]
    grads += [] if with_query else [None, None]
    query = tensors["query"] if with_query else None
    results = plain_backward(*(tensors[name] for name in REFINE), query, *saved, *grads, 2, 1e-5, True)
    for result, expected in zip(results, truth[count:], strict=False):
        torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_extreme_scores_stay_finite(dtype: torch.dtype) -> None:
    tensors = inputs(1, 200, 8, 7, 16, 64)
    tensors["key"] *= 1e4
    tensors["query"] *= 1e4
    for operator in OPERATORS.values():
        results = run(operator[0], operator[2], tensors, 8, dtype)
        assert all(torch.isfinite(r).all() for r in results)


@pytest.mark.parametrize(
    ("operator", "dictionaries", "dtype"),
    [
        ("refine", 1, torch.float32),
        ("refine", 2, torch.bfloat16),
        ("refine_attend", 1, torch.float16),
        ("refine_attend", 2, torch.float32),
        ("refine_attend", 2, torch.bfloat16),
    ],
)
def test_fifty_runs_are_bitwise_equal(operator: str, dictionaries: int, dtype: torch.dtype) -> None:
    function, _, names, _ = OPERATORS[operator]
    tensors = inputs(2, 300, 8, 3, 12, 64, dictionaries=dictionaries)
    first = run(function, names, tensors, 8, dtype)
    for _ in range(50):
        again = run(function, names, tensors, 8, dtype)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_result_does_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    tensors = inputs(1, 3000, 8, 3, 12, 64, dictionaries=2)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(refine_attend, WHOLE, tensors, 8, dtype))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dictionaries", [1, 2])
def test_opcheck(dictionaries: int) -> None:
    tensors = cast(inputs(2, 20, 4, 3, 5, 32, dictionaries=dictionaries), torch.bfloat16)
    leaves = [tensors[name].requires_grad_() for name in WHOLE]
    torch.library.opcheck(torch.ops.d2ls_fast.refine.default, (*leaves[:-1], 4, 1e-5))
    torch.library.opcheck(torch.ops.d2ls_fast.refine_attend.default, (*leaves, 4, 1e-5))


# aot_eager traces forward and backward as inductor would, without spending its compile time.
@pytest.mark.parametrize(
    ("name", "dictionaries", "compiler"), [("torch", 1, "aot_eager"), (KERNEL, 1, "inductor"), (KERNEL, 2, "aot_eager")]
)
def test_compiles_whole(name: str, dictionaries: int, compiler: str) -> None:
    torch._dynamo.reset()
    with backend(name):
        compiled = torch.compile(refine_attend, fullgraph=True, dynamic=True, backend=compiler)
        for n in (60, 113):
            tensors = inputs(2, n, 8, 3, 12, 64, dictionaries=dictionaries)
            results = run(compiled, WHOLE, tensors, 8, torch.float32)
            for result, expected in zip(results, run(refine_attend, WHOLE, tensors, 8, torch.float32), strict=True):
                torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_wrong_calls_name_the_argument() -> None:
    good = inputs(2, 10, 2, 3, 4, 16)
    wrong = {
        "pixels must be": {"pixels": good["pixels"][0]},
        "key must be": {"key": good["key"][:1]},
        "value must be": {"value": good["value"][:, :3]},
        "key_bias must be": {"key_bias": good["key_bias"][:, :3]},
        "out_bias must be": {"out_bias": good["out_bias"][:3]},
        "norm_weight must be": {"norm_weight": good["norm_weight"][:3]},
        "norm_bias must be": {"norm_bias": good["norm_bias"].unsqueeze(0)},
        "query must be": {"query": good["query"][..., :3]},
        r"key must be \[G \* 2, J, 16\]": {"key": good["key"].repeat(2, 1, 1)[:3]},
        r"value must be \[2, 6, 16\] as key is": {"value": good["value"].repeat(2, 1, 1)},
        r"query must be \[2, J, 16\] as key is": {"query": good["query"].repeat(2, 1, 1)},
        "at least one row an image": {"key": good["key"][:0]},
        "key must have at least one row": {"key": good["key"][:, :0]},
        "pixels must not be empty": {"pixels": good["pixels"][:, :0], "pixel_pe": good["pixel_pe"][:0]},
        "pixel_pe must be": {"pixel_pe": good["pixel_pe"][:5]},
        "floating-point": {name: good[name].long() for name in LOW},
        "query must have the dtype": {"query": good["query"].double()},
        "key must be on the device": {"key": good["key"].to("meta")},
        "norm_bias must be on the device": {"norm_bias": good["norm_bias"].to("meta")},
        "value must have the dtype": {"value": good["value"].half()},
    }
    for message, change in wrong.items():
        with pytest.raises(ValueError, match=message):
            refine_attend(*({**good, **change}[name] for name in WHOLE), 2)
        if "query" not in message:
            with pytest.raises(ValueError, match=message):
                refine(*({**good, **change}[name] for name in REFINE), 2)
    for heads in (0, 4):
        with pytest.raises(ValueError, match="num_heads must divide"):
            refine(*(good[name] for name in REFINE), heads)
