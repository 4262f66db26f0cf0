"""dictionary_step: the kernel against the definition, gradients, absent parts, and its standing in PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accuracy import assert_accurate
from step_calls import ALL, PARTS, Shape, call, double, inputs, run, under
from torch import Tensor

from d2ls_fast.backends import backend, backends
from d2ls_fast.ops import dictionary_step
from d2ls_fast.ops._folding import dictionary_step_definition, plain_backward

KERNEL = "cpu" if backends()["cpu"] == "available" else "torch"


def hold(results: dict[str, Tensor], plain: dict[str, Tensor], truth: dict[str, Tensor], dtype: torch.dtype) -> None:
    assert list(results) == list(plain) == list(truth)
    assert_accurate(list(results), *(list(r.values()) for r in (results, plain, truth)), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        Shape(1, 7, 8, 256, 128),
        Shape(5, 1, 1, 64, 64),
        Shape(3, 2, 8, 64, 32),
        Shape(2, 5, 2, 42, 14),  # nothing is a multiple of a vector
        Shape(4, 19, 2, 96, 48),  # blocks of rows cross images
        Shape(1, 16, 3, 1024, 48),
        Shape(1, 150, 4, 64, 32),
    ],
    ids=str,
)
def test_kernel_is_as_accurate_as_the_plain_form(shape: Shape, dtype: torch.dtype) -> None:
    tensors = inputs(shape)
    truth = under("reference", double(tensors), shape.heads, torch.float64)
    plain = under("reference", tensors, shape.heads, dtype)
    results = under(KERNEL, tensors, shape.heads, dtype)
    assert results["dictionary"].dtype is torch.float32 and results["key_bias"].dtype is torch.float32
    assert all(results[name].dtype is dtype for name in ("query", "key", "value"))
    assert results["query"].shape == (shape.batch, shape.heads * shape.entries, shape.channels)
    hold(results, plain, truth, dtype)


@pytest.mark.parametrize("parts", [("look",), ("update",), ("entries",), ("update", "look"), ("update", "entries")])
def test_parts_may_be_absent(parts: tuple[str, ...]) -> None:
    shape = Shape(2, 5, 4, 32, 16)
    tensors = inputs(shape, parts)
    truth = under("reference", double(tensors), 4, torch.float64)
    plain = under("reference", tensors, 4, torch.float32)
    results = under(KERNEL, tensors, 4, torch.float32)
    assert ("dictionary" in results) == ("update" in parts)
    hold(results, plain, truth, torch.float32)


def test_without_update_the_dictionary_is_the_one_given() -> None:
    tensors = inputs(Shape(2, 3, 2, 32, 16), ("look",))
    step = call(tensors, 2, torch.float32)
    assert step.dictionary is tensors["dictionary"]
    assert step.key.numel() == step.key_bias.numel() == step.value.numel() == 0


@pytest.mark.parametrize("name", ["torch", KERNEL])
def test_key_bias_of_a_look_gets_a_zero_gradient(name: str) -> None:
    results = under(name, inputs(Shape(1, 3, 2, 32, 16)), 2, torch.float32)
    assert torch.equal(results["grad look.key_bias"], torch.zeros(16))


@pytest.mark.parametrize("name", ["torch", KERNEL])
def test_narrow_parameters(name: str) -> None:
    tensors = {key: t.bfloat16() for key, t in inputs(Shape(2, 5, 2, 32, 16)).items()}
    results = under(name, tensors, 2, torch.bfloat16)
    assert all(t.dtype is torch.bfloat16 for key, t in results.items() if key != "key_bias")
    truth = under("reference", double(tensors), 2, torch.float64)
    for key, result in results.items():
        assert (result - truth[key]).abs().max() <= 1e-2 * truth[key].abs().max(), key


def test_definition_has_right_gradients() -> None:
    tensors = double(inputs(Shape(2, 2, 2, 6, 4)))

    def flat(*leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(call(dict(zip(tensors, leaves, strict=True)), 2, torch.float64))

    assert torch.autograd.gradcheck(flat, [t.requires_grad_() for t in tensors.values()])


@pytest.mark.parametrize("parts", [ALL, ("look",), ("update",), ("update", "entries")])
def test_plain_backward_formulas_have_right_gradients(parts: tuple[str, ...]) -> None:
    tensors = double(inputs(Shape(2, 5, 4, 32, 16), parts))
    arguments = positional(tensors)
    truth = run(tensors, 4, torch.float64)
    outputs = dictionary_step_definition(*arguments, 4, 1e-5, torch.float64)
    generator = torch.Generator().manual_seed(7)
    grads = [torch.randn(o.shape, generator=generator).double() for o in outputs]
    results = plain_backward(*arguments, *grads, 4, 1e-5)
    names = [f"grad {name}" for name in tensors if name != "look.key_bias"]
    for name, result in zip(names, results, strict=True):
        torch.testing.assert_close(result, truth[name], rtol=1e-11, atol=1e-11, msg=name)


def positional(tensors: dict[str, Tensor]) -> tuple[Any, ...]:
    """The tensors in the order of the operator."""
    groups = [[t for name, t in tensors.items() if name.startswith(part + ".")] for part in PARTS]
    return (tensors["dictionary"], tensors["position"], tensors.get("context"), *groups)


def test_extreme_values_stay_finite_and_right() -> None:
    tensors = inputs(Shape(2, 5, 4, 64, 32))
    tensors["context"] *= 1e6
    tensors["dictionary"][:, 2] = 0.0
    tensors["context"].unflatten(1, (4, 5))[:, :, 2] = 0.0
    tensors["update.out_bias"].fill_(3.0)
    tensors["update.value_bias"].zero_()  # entry 2 has no variance at all
    truth = under("reference", double(tensors), 4, torch.float64)
    plain = under("reference", tensors, 4, torch.float32)
    hold(under(KERNEL, tensors, 4, torch.float32), plain, truth, torch.float32)


def test_non_contiguous_tensors() -> None:
    tensors = inputs(Shape(2, 6, 4, 32, 16))
    wanted = run(tensors, 4, torch.float32)

    def strided(t: Tensor) -> Tensor:
        return t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 1 else t.repeat_interleave(2)[::2]

    results = run({name: strided(t) for name, t in tensors.items()}, 4, torch.float32)
    assert all(torch.equal(results[name], wanted[name]) for name in wanted)


def test_fifty_runs_are_bitwise_equal() -> None:
    tensors = inputs(Shape(2, 30, 4, 64, 32))
    first = run(tensors, 4, torch.float32)
    for _ in range(50):
        again = run(tensors, 4, torch.float32)
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    tensors, threads = inputs(Shape(2, 30, 4, 64, 32)), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(tensors, 4, torch.float32))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(other[name], results[0][name]) for name in other)


@pytest.mark.parametrize("parts", [ALL, ("look",), ("update",)])
def test_opcheck(parts: tuple[str, ...]) -> None:
    arguments = positional({name: t.requires_grad_() for name, t in inputs(Shape(2, 3, 2, 32, 16), parts).items()})
    torch.library.opcheck(torch.ops.d2ls_fast.dictionary_step.default, (*arguments, 2, 1e-5, torch.bfloat16))
    arguments = positional(inputs(Shape(2, 3, 2, 32, 16), parts))
    grads = [torch.randn_like(o) for o in torch.ops.d2ls_fast.dictionary_step(*arguments, 2, 1e-5, torch.bfloat16)]
    torch.library.opcheck(torch.ops.d2ls_fast.dictionary_step_backward.default, (*arguments, *grads, 2, 1e-5))


@pytest.mark.parametrize(("name", "dynamic"), [("torch", False), (KERNEL, False), (KERNEL, True)])
def test_compiles_whole(name: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    with backend(name):
        # Traced forward and backward, without the minutes of code generation for the plain form.
        compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for entries in (5, 7) if dynamic else (5,):
            tensors = inputs(Shape(2, entries, 4, 32, 16))
            results = run(tensors, 4, torch.float32, compiled)
            for key, wanted in run(tensors, 4, torch.float32).items():
                torch.testing.assert_close(results[key], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["torch", KERNEL])
def test_autocast_changes_nothing(name: str) -> None:
    tensors = inputs(Shape(2, 5, 4, 32, 16))
    wanted = under(name, tensors, 4, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = under(name, tensors, 4, torch.float32)
    assert all(torch.equal(results[key], wanted[key]) for key in wanted)


def test_wrong_calls_name_the_argument() -> None:
    good = inputs(Shape(2, 3, 2, 32, 16))
    wrong: dict[str, dict[str, Any]] = {
        r"dictionary must be \[B, K, C\]": {"dictionary": good["dictionary"][0]},
        "not empty": {"dictionary": good["dictionary"][:, :0]},
        r"position must be \[2, 3, 32\]": {"position": good["position"][:1]},
        r"context must be \[2, 6, 32\]": {"context": good["context"][:, :5]},
        "context and update": {"context": None},
        r"update.value_bias must be \[16\]": {"update.value_bias": good["update.value_bias"][:3]},
        r"update.norm_weight must be \[32\]": {"update.norm_weight": good["update.norm_weight"][:3]},
        r"entries.out_weight must be \[32, 16\]": {"entries.out_weight": good["entries.out_weight"].t()},
        r"look.key_weight must be \[16, 32\]": {"look.key_weight": good["look.key_weight"][:8]},
        "look.query_bias must be a floating-point": {"look.query_bias": good["look.query_bias"].long()},
        "entries.key_bias must be on the device": {"entries.key_bias": good["entries.key_bias"].to("meta")},
    }
    for message, change in wrong.items():
        with pytest.raises(ValueError, match=f"dictionary_step: .*{message}"):
            call({**good, **change}, 2, torch.float32)
    for heads in (0, 3):
        with pytest.raises(ValueError, match="num_heads must divide the attention width 16"):
            call(good, heads, torch.float32)
    with pytest.raises(ValueError, match="dtype must be a floating-point type"):
        call(good, 2, torch.int64)
    with pytest.raises(ValueError, match="one of update, entries and look"):
        dictionary_step(good["dictionary"], good["position"], 2, torch.float32)
