"""classify and classify_labels: kernels against the definition, gradients, labels, and their standing in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accuracy import assert_accurate
from torch import Tensor

from d2ls_fast.backends import backend, backends
from d2ls_fast.ops import classify, classify_labels
from d2ls_fast.ops._classify import classify_definition, plain_backward

KERNEL = "cpu" if backends()["cpu"] == "available" else "torch"
NAMES = ["pixels", "norm_weight", "norm_bias", "hyper"]
LABELS = ["logits", *(f"grad_{name}" for name in NAMES)]
REDUCTIONS = ["logsumexp", "max", "mean"]


def inputs(b: int, h: int, w: int, c: int, k: int, p: int = 1, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed + 100 * h * w + k)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return [random(b, h * w, c), 1 + 0.1 * random(c // 4), 0.3 * random(c // 4), random(b, k * p, c // 16)]


def cast(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The pixels in the dtype, the three others in the precision of the sums."""
    wide = torch.promote_types(dtype, torch.float32)
    return [t.detach().clone().to(dtype if i == 0 else wide) for i, t in enumerate(tensors)]


def run(function: Callable[..., Tensor], tensors: list[Tensor], dtype: torch.dtype, *options: Any) -> list[Tensor]:
    """Logits and the gradient of every input."""
    leaves = [t.requires_grad_() for t in cast(tensors, dtype)]
    logits = function(*leaves, *options)
    generator = torch.Generator().manual_seed(7)
    logits.backward(torch.randn(logits.shape, generator=generator).to(logits))
    return [logits.detach(), *(leaf.grad for leaf in leaves)]


def under(name: str, *arguments: Any) -> list[Tensor]:
    with backend(name):
        return run(classify, *arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("b", "grid", "c", "k", "p", "reduction"),
    [
        (1, (1, 1), 16, 1, 1, "logsumexp"),
        (3, (7, 5), 64, 7, 1, "logsumexp"),
        (1, (13, 113), 256, 19, 1, "logsumexp"),
        (5, (7, 29), 96, 2, 3, "logsumexp"),
        (3, (7, 5), 96, 7, 3, "max"),
        (1, (31, 33), 64, 16, 3, "mean"),
        (1, (5, 3), 256, 150, 3, "logsumexp"),
        (4, (1, 113), 16, 150, 1, "max"),
        (1, (128, 128), 32, 5, 1, "logsumexp"),
        (1, (2, 9), 1024, 1, 3, "logsumexp"),
    ],
)
def test_kernel_is_as_accurate_as_the_unfused_path(b, grid, c, k, p, reduction, dtype) -> None:
    tensors = cast(inputs(b, *grid, c, k, p), dtype)
    options = (grid, p, reduction)
    truth = under("reference", tensors, torch.float64, *options)
    plain = under("reference", tensors, dtype, *options)
    results = under(KERNEL, tensors, dtype, *options)
    assert results[0].dtype is torch.float32 and results[0].shape == (b, k, 4 * grid[0], 4 * grid[1])
    assert results[1].dtype is dtype
    assert_accurate(LABELS, results, plain, truth, dtype)


@pytest.mark.parametrize("k", [1, 2, 7, 19, 150, 300])
@pytest.mark.parametrize(("p", "reduction"), [(1, "max"), (3, "logsumexp"), (3, "max"), (3, "mean")])
@pytest.mark.parametrize("size", [(28, 20), (25, 18), (1, 3)])
def test_labels_are_the_argmax_of_the_logits(k: int, p: int, reduction: Any, size: tuple[int, int]) -> None:
    tensors = inputs(2, 7, 5, 64, k, p)
    with backend(KERNEL):
        logits = classify(*tensors, (7, 5), p, reduction)[..., : size[0], : size[1]]
        labels, confidence = classify_labels(*tensors, (7, 5), size, True, p, reduction)
        alone, nothing = classify_labels(*tensors, (7, 5), size, False, p, reduction)
    assert labels.dtype is (torch.uint8 if k <= 256 else torch.int16)
    assert labels.shape == (2, *size) and labels.is_contiguous()
    assert torch.equal(labels.long(), logits.argmax(1))
    assert torch.equal(alone, labels) and nothing is None
    torch.testing.assert_close(confidence, logits.softmax(1).amax(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["torch", KERNEL])
def test_the_first_of_equal_classes_is_the_label(name: str) -> None:
    pixels, norm_weight, norm_bias, hyper = inputs(1, 3, 5, 32, 6)
    hyper[:, 3:] = hyper[:, :3]
    with backend(name):
        labels, _ = classify_labels(pixels, norm_weight, norm_bias, hyper, (3, 5), (12, 20))
    assert labels.max() == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_labels_in_half_precision(dtype: torch.dtype) -> None:
    tensors = cast(inputs(1, 6, 7, 64, 7), dtype)
    exact = classify(*cast(tensors, torch.float32), (6, 7)).argmax(1)
    with backend(KERNEL):
        labels, _ = classify_labels(*tensors, (6, 7), (24, 28))
    if KERNEL == "cpu":  # the kernel widens what it reads, so that nothing is lost
        assert torch.equal(labels.long(), exact)
    assert (labels.long() == exact).float().mean() > 0.95


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_definition_has_right_gradients(reduction: Any) -> None:
    leaves = [t.requires_grad_() for t in cast(inputs(1, 1, 2, 16, 2, 2), torch.float64)]
    assert torch.autograd.gradcheck(lambda *t: classify(*t, (1, 2), 2, reduction), leaves)


@pytest.mark.parametrize("p", [1, 3])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_plain_backward_formulas_have_right_gradients(p: int, reduction: str) -> None:
    tensors = cast(inputs(2, 3, 5, 32, 4, p), torch.float64)
    tensors[0] = tensors[0].unflatten(1, (3, 5))
    truth = run(classify_definition, tensors, torch.float64, p, reduction, 1e-6)
    grad = torch.randn(truth[0].shape, generator=torch.Generator().manual_seed(7)).double()
    for result, expected in zip(plain_backward(*tensors, grad, p, reduction, 1e-6), truth[1:], strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)


def test_equal_prototypes_share_the_gradient_of_their_maximum() -> None:
    tensors = inputs(1, 2, 3, 32, 2, 2)
    tensors[3][:, 1::2] = tensors[3][:, ::2]
    results = under(KERNEL, tensors, torch.float32, (2, 3), 2, "max")
    torch.testing.assert_close(results[-1][:, ::2], results[-1][:, 1::2], rtol=0, atol=0)
    truth = under("reference", tensors, torch.float64, (2, 3), 2, "max")
    torch.testing.assert_close(results[-1], truth[-1].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("p", "reduction"), [(1, "max"), (3, "logsumexp"), (3, "max")])
def test_extreme_values_stay_finite_and_right(p: int, reduction: Any) -> None:
    pixels, norm_weight, norm_bias, hyper = inputs(1, 5, 7, 64, 7, p)
    pixels, norm_weight, hyper = pixels * 1e4, norm_weight * 100, hyper * 1e4
    pixels[:, 3] = 5.0  # no variance at all
    tensors = [pixels, norm_weight, norm_bias, hyper]
    truth = under("reference", tensors, torch.float64, (5, 7), p, reduction)
    plain = under("reference", tensors, torch.float32, (5, 7), p, reduction)
    results = under(KERNEL, tensors, torch.float32, (5, 7), p, reduction)
    assert_accurate(LABELS, results, plain, truth, torch.float32)
    labels, confidence = classify_labels(*tensors, (5, 7), (20, 28), True, p, reduction)
    assert torch.equal(labels.long(), results[0].argmax(1)) and torch.isfinite(confidence).all()


def test_activation_is_gelu_over_the_whole_range() -> None:
    """One channel of U at a time: C = 16, a norm that passes the wanted value on, and a class vector of one."""
    values = torch.cat((torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 1e-30, 60.0, -60.0, 500.0, -500.0])))
    results = []
    for value in values.split(1000):
        # Pixels of no variance: the norm's result is its bias, so the bias is what is scanned.
        logits = torch.stack(
            [classify(torch.ones(1, 1, 16), torch.ones(4), v.expand(4), torch.ones(1, 1, 1), (1, 1)) for v in value]
        )
        assert torch.equal(logits, logits[..., :1, :1].expand_as(logits))
        results.append(logits[:, 0, 0, 0, 0])
    truth = torch.nn.functional.gelu(torch.nn.functional.gelu(values.double()))
    error = (torch.cat(results).double() - truth).abs() / truth.abs().clamp_min(1)
    assert error.max() < 2e-7


def test_non_contiguous_pixels() -> None:
    tensors = inputs(2, 6, 5, 32, 4)
    wanted = run(classify, tensors, torch.float32, (6, 5))
    image = tensors[0].transpose(1, 2).contiguous().requires_grad_()  # [B, C, N]
    logits = classify(image.transpose(1, 2), *tensors[1:], (6, 5))
    generator = torch.Generator().manual_seed(7)
    logits.backward(torch.randn(logits.shape, generator=generator).to(memory_format=torch.channels_last))
    assert torch.equal(logits, wanted[0])
    assert torch.equal(image.grad.transpose(1, 2), wanted[1])


def test_norm_and_class_vectors_may_be_narrower_than_float32() -> None:
    tensors = [t.bfloat16().requires_grad_() for t in inputs(1, 4, 4, 32, 3)]
    logits = classify(*tensors, (4, 4))
    logits.sum().backward()
    assert logits.dtype is torch.float32
    assert all(t.grad.dtype is torch.bfloat16 and t.grad.isfinite().all() for t in tensors)


def test_fifty_runs_are_bitwise_equal() -> None:
    tensors = inputs(2, 19, 23, 64, 5, 2)
    first = [
        *run(classify, tensors, torch.float32, (19, 23), 2),
        *classify_labels(*tensors, (19, 23), (76, 92), True, 2),
    ]
    for _ in range(50):
        again = run(classify, tensors, torch.float32, (19, 23), 2)
        again += classify_labels(*tensors, (19, 23), (76, 92), True, 2)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    tensors, threads = inputs(2, 19, 23, 64, 5), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(classify, tensors, torch.float32, (19, 23)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck() -> None:
    tensors = cast(inputs(2, 3, 5, 32, 4, 3), torch.bfloat16)
    leaves = [tensors[0].unflatten(1, (3, 5)).requires_grad_(), *(t.requires_grad_() for t in tensors[1:])]
    torch.library.opcheck(torch.ops.d2ls_fast.classify.default, (*leaves, 3, "logsumexp", 1e-6))
    plain = [t.detach() for t in leaves]
    for confidence in (True, False):
        torch.library.opcheck(torch.ops.d2ls_fast.classify_labels.default, (*plain, 3, "max", 1e-6, confidence))
    grad = torch.randn(2, 4, 12, 20)
    torch.library.opcheck(torch.ops.d2ls_fast.classify_backward.default, (*plain, grad, 3, "mean", 1e-6))


# aot_eager traces forward and backward as inductor would, without spending its compile time.
@pytest.mark.parametrize(("name", "compiler"), [("torch", "aot_eager"), (KERNEL, "inductor")])
def test_compiles_whole(name: str, compiler: str) -> None:
    torch._dynamo.reset()
    with backend(name):
        compiled = torch.compile(classify, fullgraph=True, dynamic=True, backend=compiler)

        def of_one_model(*arguments: Any) -> Tensor:
            """Batch and grid vary, channels and classes do not: symbolic ones take the tracer a minute."""
            for tensor, sizes in zip(arguments, ((2,), (0,), (0,), (1, 2)), strict=False):
                for size in sizes:
                    torch._dynamo.mark_static(tensor, size)
            result: Tensor = compiled(*arguments)
            return result

        for b, grid in ((2, (6, 10)), (3, (9, 7))):
            tensors = inputs(b, *grid, 64, 5, 2)
            results = run(of_one_model, tensors, torch.float32, grid, 2)
            for result, expected in zip(results, run(classify, tensors, torch.float32, grid, 2), strict=True):
                torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_labels_compile_whole() -> None:
    torch._dynamo.reset()
    with backend(KERNEL):
        compiled = torch.compile(classify_labels, fullgraph=True, dynamic=True)
        for grid in ((6, 10), (9, 7)):
            tensors, size = inputs(2, *grid, 64, 5, 2), (4 * grid[0] - 1, 4 * grid[1])
            labels, confidence = compiled(*tensors, grid, size, True, 2)
            wanted = classify_labels(*tensors, grid, size, True, 2)
            assert (labels == wanted[0]).float().mean() > 0.99
            torch.testing.assert_close(confidence, wanted[1], rtol=1e-4, atol=1e-4)


def test_autocast_leaves_the_scores_in_float32() -> None:
    tensors = inputs(1, 4, 5, 32, 3)
    wanted = classify(*tensors, (4, 5))
    for name in ("torch", KERNEL):
        with backend(name), torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(classify(*tensors, (4, 5)), wanted)


def test_wrong_calls_name_the_argument() -> None:
    good = dict(zip(NAMES, inputs(2, 3, 4, 32, 6), strict=True)) | {"grid": (3, 4)}
    wrong: dict[str, dict[str, Any]] = {
        "pixels must be": {"pixels": good["pixels"][0]},
        "C a multiple of 16": {"pixels": good["pixels"][..., :20]},
        "floating-point": {"pixels": good["pixels"].long()},
        "not empty": {"pixels": good["pixels"][:, :0]},
        "norm_weight must be": {"norm_weight": good["norm_weight"][:3]},
        "norm_bias must be": {"norm_bias": good["norm_bias"].unsqueeze(0)},
        "hyper must be": {"hyper": good["hyper"][..., :1]},
        r"hyper must be \[2, K \* P, 2\]": {"hyper": good["hyper"][:, :0]},
        "hyper must be on the device": {"hyper": good["hyper"].to("meta")},
        "grid must be": {"grid": (4, 4)},
        "prototypes must divide": {"prototypes": 4},
        "reduction must be one of logsumexp, max, mean": {"reduction": "sum"},
    }
    for message, change in wrong.items():
        with pytest.raises(ValueError, match=f"classify: .*{message}"):
            classify(**{**good, **change})
        with pytest.raises(ValueError, match=f"classify_labels: .*{message}"):
            classify_labels(**{**good, **change}, size=(12, 16))
    for size in ((13, 16), (12, 17), (0, 4)):
        with pytest.raises(ValueError, match="classify_labels: size must be at most"):
            classify_labels(**good, size=size)
