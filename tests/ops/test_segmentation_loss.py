"""segmentation_loss: the kernel against the losses on classify's logits, gradients, labels, standing in PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accuracy import assert_accurate
from torch import Tensor

from d2ls_fast.backends import backend, backends
from d2ls_fast.nn.segmentation import dice_loss, soft_cross_entropy
from d2ls_fast.ops import classify, segmentation_loss
from d2ls_fast.ops._segmentation import plain_backward, segmentation_sums_definition

KERNEL = "cpu" if backends()["cpu"] == "available" else "torch"
NAMES = ["pixels", "norm_weight", "norm_bias", "hyper"]
LABELS = ["cross_entropy", "dice", *(f"grad_{name}" for name in NAMES)]
IGNORE = 255


def inputs(b: int, h: int, w: int, c: int, k: int, p: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 * h * w + k)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return [random(b, h * w, c), 1 + 0.1 * random(c // 4), 0.3 * random(c // 4), random(b, k * p, c // 16)]


def labels(b: int, size: tuple[int, int], k: int, ignored: float = 0.2) -> Tensor:
    """The last class is absent where there are three or more; a share of the pixels is ignored."""
    generator = torch.Generator().manual_seed(k)
    target = torch.randint(0, k - 1 if k > 2 else k, (b, *size), generator=generator)
    return target.where(torch.rand(target.shape, generator=generator) >= ignored, IGNORE)


def cast(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The pixels in the dtype, the three others in the precision of the sums."""
    wide = torch.promote_types(dtype, torch.float32)
    return [t.detach().clone().to(dtype if i == 0 else wide) for i, t in enumerate(tensors)]


def run(tensors: list[Tensor], dtype: torch.dtype, target: Tensor, grid: tuple[int, int], **options: Any):
    """Both losses and the gradients of one total."""
    leaves = [t.requires_grad_() for t in cast(tensors, dtype)]
    cross_entropy, dice = options.pop("function", segmentation_loss)(*leaves, target, grid, **options)
    # Loss scaling, as half-precision training has it: the gradient of one pixel in a mean would underflow.
    ((1.3 * cross_entropy + 0.7 * dice) * 1024).backward()
    return [cross_entropy.detach(), dice.detach(), *(leaf.grad for leaf in leaves)]


def through_logits(
    pixels: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    hyper: Tensor,
    target: Tensor,
    grid: tuple[int, int],
    smoothing: float = 0.05,
    dice_smooth: float = 0.05,
    class_weights: Tensor | None = None,
    ignore_index: int = IGNORE,
    compat: Any = "corrected",
    prototypes: int = 1,
    reduction: Any = "logsumexp",
) -> tuple[Tensor, Tensor]:
    with backend("reference"):
        logits = classify(pixels, norm_weight, norm_bias, hyper, grid, prototypes, reduction)
    logits = logits[..., : target.shape[1], : target.shape[2]]
    return (
        soft_cross_entropy(logits, target, smoothing, class_weights, ignore_index, compat),
        dice_loss(logits, target, dice_smooth, ignore_index, compat),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("b", "grid", "size", "c", "k", "options"),
    [
        (1, (1, 1), (4, 4), 16, 1, {}),
        (1, (1, 1), (1, 1), 32, 2, {}),
        (3, (7, 5), (27, 18), 64, 7, {}),
        (2, (13, 113), (49, 450), 64, 19, {"smoothing": 0.0, "compat": "release"}),
        (5, (9, 33), (29, 132), 32, 2, {"prototypes": 3, "weights": True}),
        (3, (7, 5), (28, 20), 96, 7, {"prototypes": 3, "reduction": "max", "compat": "release", "dice_smooth": 0.0}),
        (1, (20, 17), (80, 68), 64, 16, {"prototypes": 2, "reduction": "mean", "weights": True, "smoothing": 0.3}),
        (1, (5, 3), (20, 12), 256, 150, {"weights": True, "compat": "release"}),
        (4, (3, 40), (9, 158), 16, 5, {"ignore_index": 1}),
        (1, (2, 9), (8, 36), 1024, 5, {"ignore_index": -100}),
        (1, (128, 128), (511, 512), 32, 7, {}),
    ],
)
def test_kernel_is_as_accurate_as_the_losses_on_logits(b, grid, size, c, k, options, dtype) -> None:
    options = dict(options)
    tensors, target = cast(inputs(b, *grid, c, k, options.get("prototypes", 1)), dtype), labels(b, size, k)
    if "ignore_index" in options:
        target[target == IGNORE] = options["ignore_index"]
    if options.pop("weights", False):
        options["class_weights"] = torch.linspace(0.2, 3.0, k)
    arguments = (target, grid)
    truth = run(tensors, torch.float64, *arguments, function=through_logits, **options)
    plain = run(tensors, dtype, *arguments, function=through_logits, **options)
    with backend(KERNEL):
        results = run(tensors, dtype, *arguments, **options)
    assert results[0].dtype is results[1].dtype is torch.float32 and results[0].shape == results[1].shape == ()
    assert results[2].dtype is dtype
    assert_accurate(LABELS, results, plain, truth, dtype)
    with backend("reference"):
        definition = run(tensors, torch.float64, *arguments, **options)
    for result, expected in zip(definition, truth, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)


def sums(tensors: list[Tensor], target: Tensor, *options: Any) -> tuple[Tensor, ...]:
    return torch.ops.d2ls_fast.segmentation_sums(*tensors, target, *options)


@pytest.mark.parametrize("weighted", [True, False])
def test_sums_are_what_they_say(weighted: bool) -> None:
    tensors, target = inputs(2, 9, 5, 32, 4), labels(2, (35, 20), 4)
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0]) if weighted else None
    tensors[0] = tensors[0].unflatten(1, (9, 5))
    total, overlap, volume, count = sums(tensors, target, weights, 0.1, IGNORE, 1, "max", 1e-6)
    logits = classify(*[tensors[0].flatten(1, 2), *tensors[1:]], (9, 5))[..., :35, :]
    probability = logits.softmax(1).movedim(1, -1)[target != IGNORE]
    truth = target[target != IGNORE]
    assert torch.equal(count, torch.bincount(truth, minlength=4).float())
    torch.testing.assert_close(volume, probability.sum(0))
    torch.testing.assert_close(overlap, torch.stack([probability[truth == k][:, k].sum() for k in range(4)]))
    wanted = torch.nn.functional.cross_entropy(
        logits, target, weights, ignore_index=IGNORE, label_smoothing=0.1, reduction="sum"
    )
    torch.testing.assert_close(total, wanted)


def test_counts_are_exact_beyond_the_integers_of_float32() -> None:
    """4 x 4 x 2,098,000 pixels of one class, in sums of float32 the count would stop at 16,777,216."""
    n = 2_098_000
    tensors = [torch.zeros(1, 1, n, 16), torch.ones(4), torch.zeros(4), torch.zeros(1, 2, 1)]
    total, overlap, volume, count = sums(
        tensors, torch.zeros(1, 4, 4 * n, dtype=torch.int64), None, 0.0, IGNORE, 1, "max", 1e-6
    )
    assert count.tolist() == [16 * n, 0]
    torch.testing.assert_close(overlap, torch.tensor([8.0 * n, 0.0]))
    torch.testing.assert_close(volume, torch.tensor([8.0 * n, 8.0 * n]))
    torch.testing.assert_close(total, torch.tensor(16.0 * n).mul(torch.tensor(2.0).log()))


@pytest.mark.parametrize("compat", ["corrected", "release"])
def test_definition_has_right_gradients(compat: Any) -> None:
    leaves = [t.requires_grad_() for t in cast(inputs(1, 1, 2, 16, 3, 2), torch.float64)]
    target, weights = labels(1, (3, 7), 3), torch.tensor([0.5, 1.0, 2.0])

    def losses(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return segmentation_loss(
            *tensors, target, (1, 2), class_weights=weights, compat=compat, prototypes=2, reduction="logsumexp"
        )

    assert torch.autograd.gradcheck(losses, leaves)


@pytest.mark.parametrize(
    ("p", "reduction", "weighted"),
    [(1, "logsumexp", True), (3, "logsumexp", False), (2, "max", True), (2, "mean", False)],
)
def test_plain_backward_formulas_have_right_gradients(p: int, reduction: str, weighted: bool) -> None:
    leaves = cast(inputs(2, 3, 5, 32, 4, p), torch.float64)
    leaves[0] = leaves[0].unflatten(1, (3, 5))
    leaves = [t.requires_grad_() for t in leaves]
    weights = torch.tensor([0.5, 1.0, 2.0, 0.7]).double() if weighted else None
    options = (labels(2, (11, 19), 4), weights, 0.1, IGNORE, p, reduction, 1e-6)
    results = segmentation_sums_definition(*leaves, *options)
    generator = torch.Generator().manual_seed(7)
    gradients = [torch.randn(r.shape, generator=generator).double() for r in results[:3]]
    truth = torch.autograd.grad(results[:3], leaves, gradients)
    with torch.no_grad():
        found = plain_backward(*leaves, *options, *gradients)
    for result, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("compat", ["corrected", "release"])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 3.0])])
def test_no_labelled_pixel_gives_zero_loss_and_gradients(compat: Any, weights: Tensor | None) -> None:
    pixels, *others = inputs(2, 5, 6, 32, 3)
    if KERNEL == "cpu":
        pixels[:, 2] = float("nan")  # the kernel does not look at what is ignored
    target = torch.full((2, 20, 24), IGNORE)
    for result in run([pixels, *others], torch.float32, target, (5, 6), class_weights=weights, compat=compat):
        assert torch.equal(result, torch.zeros_like(result))


@pytest.mark.parametrize("p", [1, 3])
def test_extreme_values_stay_finite_and_right(p: int) -> None:
    pixels, norm_weight, norm_bias, hyper = inputs(1, 5, 7, 64, 7, p)
    pixels, norm_weight, hyper = pixels * 1e4, norm_weight * 100, hyper * 1e4
    pixels[:, 3] = 5.0  # no variance at all
    tensors, arguments = [pixels, norm_weight, norm_bias, hyper], (labels(1, (20, 27), 7), (5, 7))
    truth = run(tensors, torch.float64, *arguments, function=through_logits, prototypes=p)
    plain = run(tensors, torch.float32, *arguments, function=through_logits, prototypes=p)
    with backend(KERNEL):
        results = run(tensors, torch.float32, *arguments, prototypes=p)
    assert_accurate(LABELS, results, plain, truth, torch.float32)


@pytest.mark.parametrize("name", ["torch", KERNEL])
@pytest.mark.parametrize("label", [4, -1, 256, 2**40, -(2**40)])
def test_a_wrong_label_is_named(name: str, label: int) -> None:
    tensors, target = inputs(2, 40, 9, 32, 4), labels(2, (160, 36), 4)
    target[1, 157, 35] = label
    message = f"target must hold classes from 0 to 3 or ignore_index 255, got the label {label}$"
    with backend(name), pytest.raises(ValueError, match=f"segmentation_loss: {message}"):
        segmentation_loss(*tensors, target, (40, 9))


def test_non_contiguous_inputs() -> None:
    tensors, target = inputs(2, 6, 5, 32, 4), labels(2, (23, 18), 4)
    wanted = run(tensors, torch.float32, target, (6, 5))
    image = tensors[0].transpose(1, 2).contiguous().requires_grad_()  # [B, C, N]
    strided = target.movedim(0, -1).contiguous().movedim(-1, 0)
    weights = torch.ones(4, 3)[:, 1]
    cross_entropy, dice = segmentation_loss(image.transpose(1, 2), *tensors[1:], strided, (6, 5), class_weights=weights)
    ((1.3 * cross_entropy + 0.7 * dice) * 1024).backward()
    assert torch.equal(cross_entropy, wanted[0]) and torch.equal(dice, wanted[1])
    assert torch.equal(image.grad.transpose(1, 2), wanted[2])


def test_norm_and_class_vectors_may_be_narrower_than_float32() -> None:
    tensors = [t.bfloat16().requires_grad_() for t in inputs(1, 4, 4, 32, 3)]
    weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
    cross_entropy, dice = segmentation_loss(*tensors, labels(1, (16, 16), 3), (4, 4), class_weights=weights)
    (cross_entropy + dice).backward()
    assert cross_entropy.dtype is dice.dtype is torch.float32 and weights.grad is None
    assert all(t.grad.dtype is torch.bfloat16 and t.grad.isfinite().all() for t in tensors)


def test_fifty_runs_are_bitwise_equal() -> None:
    tensors, target = inputs(2, 19, 23, 64, 5, 2), labels(2, (75, 92), 5)
    first = run(tensors, torch.float32, target, (19, 23), prototypes=2)
    for _ in range(50):
        again = run(tensors, torch.float32, target, (19, 23), prototypes=2)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    tensors, target, threads = inputs(2, 19, 23, 64, 5), labels(2, (75, 92), 5), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(tensors, torch.float32, target, (19, 23)))
    finally:
        torch.set_num_threads(threads)
    tolerance = 0.0 if KERNEL == "cpu" else 1e-5  # PyTorch's own sums do depend on it
    for first, *others in zip(*results, strict=True):
        for other in others:
            torch.testing.assert_close(other, first, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("weighted", [True, False])
def test_opcheck(weighted: bool) -> None:
    tensors = cast(inputs(2, 3, 5, 32, 4, 3), torch.bfloat16)
    leaves = [tensors[0].unflatten(1, (3, 5)).requires_grad_(), *(t.requires_grad_() for t in tensors[1:])]
    weights = torch.tensor([0.5, 1.0, 2.0, 0.7]) if weighted else None
    options = (labels(2, (11, 19), 4), weights, 0.05, IGNORE, 3, "logsumexp", 1e-6)
    torch.library.opcheck(torch.ops.d2ls_fast.segmentation_sums.default, (*leaves, *options))
    plain, gradients = [t.detach() for t in leaves], (torch.randn(()), torch.randn(4), torch.randn(4))
    torch.library.opcheck(torch.ops.d2ls_fast.segmentation_sums_backward.default, (*plain, *options, *gradients))


# aot_eager traces forward and backward as inductor would, without spending its compile time.
@pytest.mark.parametrize(
    ("name", "compiler", "dynamic"),
    [("torch", "aot_eager", False), (KERNEL, "inductor", True), (KERNEL, "aot_eager", False)],
)
def test_compiles_whole(name: str, compiler: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    with backend(name):
        compiled = torch.compile(segmentation_loss, fullgraph=True, dynamic=dynamic, backend=compiler)
        for grid in ((6, 10), (9, 7))[: 1 + dynamic]:
            tensors, target = inputs(2, *grid, 64, 5, 2), labels(2, (4 * grid[0] - 1, 4 * grid[1]), 5)
            results = run(tensors, torch.float32, target, grid, function=compiled, prototypes=2)
            wanted = run(tensors, torch.float32, target, grid, prototypes=2)
            for result, expected in zip(results, wanted, strict=True):
                torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
        target[0, 0, 0] = 5
        with pytest.raises(RuntimeError, match="target must hold classes from 0 to 4"):
            compiled(*tensors, target, grid, prototypes=2)


def test_autocast_leaves_the_sums_in_float32() -> None:
    tensors, target = inputs(1, 4, 5, 32, 3), labels(1, (16, 20), 3)
    wanted = segmentation_loss(*tensors, target, (4, 5))
    for name in ("torch", KERNEL):
        with backend(name), torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(segmentation_loss(*tensors, target, (4, 5)), wanted)


def test_wrong_calls_name_the_argument() -> None:
    good = dict(zip(NAMES, inputs(2, 3, 4, 32, 6), strict=True)) | {"target": labels(2, (12, 16), 6), "grid": (3, 4)}
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("pixels must be", {"pixels": good["pixels"][0]}),
        ("hyper must be", {"hyper": good["hyper"][..., :1]}),
        ("prototypes must divide", {"prototypes": 4}),
        ("target must be int64, got torch.uint8", {"target": good["target"].byte()}),
        (r"target must be \[2, H, W\]", {"target": good["target"][0]}),
        (r"target must be \[2, H, W\]", {"target": good["target"][:1]}),
        (r"target must be \[2, H, W\], not empty", {"target": good["target"][:, :0]}),
        (r"target must have at most \(4h, 4w\) = \(12, 16\)", {"target": labels(2, (13, 16), 6)}),
        (r"target must have at most \(4h, 4w\) = \(12, 16\)", {"target": labels(2, (12, 17), 6)}),
        ("target must be on the device", {"target": good["target"].to("meta")}),
        (r"class_weights must be \[6\]", {"class_weights": torch.ones(5)}),
        ("class_weights must be on the device", {"class_weights": torch.ones(6, device="meta")}),
        (r"smoothing must be in \[0, 1\)", {"smoothing": 1.0}),
        (r"smoothing must be in \[0, 1\)", {"smoothing": float("nan")}),
        ("dice_smooth must not be negative", {"dice_smooth": -0.1}),
        ("compat must be one of corrected, release", {"compat": "old"}),
    ]
    for message, change in wrong:
        with pytest.raises(ValueError, match=f"segmentation_loss: .*{message}"):
            segmentation_loss(**{**good, **change})
