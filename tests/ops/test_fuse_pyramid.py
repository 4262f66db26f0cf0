"""fuse_pyramid: kernels against the definition, gradients, layouts, and its standing in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from accuracy import assert_accurate
from torch import Tensor

from d2ls_fast.backends import backend, backends
from d2ls_fast.ops import fuse_pyramid
from d2ls_fast.ops.fuse_pyramid import fuse_pyramid_definition, plain_backward

KERNEL = "cpu" if backends()["cpu"] == "available" else "torch"
Sizes = Sequence[tuple[int, int]]
Maps = tuple[list[Tensor], list[Tensor], list[Tensor]]


def inputs(b: int, c: int, channels: Sequence[int], sizes: Sizes, seed: int = 0) -> Maps:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    features = [random(b, ci, *size) for ci, size in zip(channels, sizes, strict=True)]
    return features, [random(c, ci) / ci**0.5 for ci in channels], [random(c) for _ in channels]


def cast(maps: Maps, dtype: torch.dtype) -> Maps:
    """Features (with their strides) and weights in the dtype, the biases in the precision of the sums."""
    features, weights, biases = maps
    wide = torch.promote_types(dtype, torch.float32)
    return (
        [f.detach().to(dtype, copy=True) for f in features],
        [w.detach().to(dtype, copy=True) for w in weights],
        [b.detach().to(wide, copy=True) for b in biases],
    )


def run(function: Callable[..., Tensor], maps: Maps, dtype: torch.dtype) -> list[Tensor]:
    """The result and the gradient of every input."""
    leaves = [[t.requires_grad_() for t in tensors] for tensors in cast(maps, dtype)]
    fused = function(*leaves)
    fused.backward(torch.randn(fused.shape, generator=torch.Generator().manual_seed(7)).to(fused))
    return [fused.detach(), *(leaf.grad for tensors in leaves for leaf in tensors)]


def under(name: str, maps: Maps, dtype: torch.dtype) -> list[Tensor]:
    with backend(name):
        return run(fuse_pyramid, maps, dtype)


def assert_rule(maps: Maps, dtype: torch.dtype) -> list[Tensor]:
    maps = cast(maps, dtype)
    results = under(KERNEL, maps, dtype)
    names = [f"result {i}" for i in range(len(results))]
    truth, plain = under("reference", maps, torch.float64), under("reference", maps, dtype)
    assert_accurate(names, results, plain, truth, dtype)
    return results


FOUR = ((23, 49), (12, 25), (6, 13), (3, 7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("b", "c", "channels", "sizes"),
    [
        (1, 1, (1,), ((1, 1),)),
        (3, 16, (5,), ((7, 29),)),
        (1, 256, (96, 192, 384, 768), ((16, 24), (8, 12), (4, 6), (2, 3))),
        (2, 80, (24, 40, 112, 200), FOUR),
        (5, 20, (3, 17, 130), ((1, 113), (1, 57), (1, 29))),
        (1, 64, (6, 7), ((33, 31), (17, 16))),
        (4, 16, (3, 5), ((128, 128), (64, 64))),
        (2, 36, (9, 5, 4), ((5, 7), (11, 3), (5, 7))),  # coarse levels that are larger in one axis or of the same size
        (1, 48, (6, 7, 8, 9, 10), ((40, 3), (20, 2), (10, 1), (5, 1), (3, 1))),
    ],
)
def test_kernel_is_as_accurate_as_the_plain_path(b, c, channels, sizes, dtype) -> None:
    results = assert_rule(inputs(b, c, channels, sizes), dtype)
    assert results[0].dtype is dtype and results[0].shape == (b, sizes[0][0] * sizes[0][1], c)
    assert results[0].is_contiguous()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda f: f.to(memory_format=torch.channels_last),
    "slice of channels": lambda f: torch.cat((f, f), 1)[:, : f.shape[1]],
    "slice of pixels": lambda f: torch.cat((f, f), 3)[..., : f.shape[3]],
    "slice, channels last": lambda f: torch.cat((f, f), 1).to(memory_format=torch.channels_last)[:, f.shape[1] :],
    "rows and columns swapped": lambda f: f.transpose(2, 3).contiguous().transpose(2, 3),
    "one image for all": lambda f: f[:1].expand_as(f),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype) -> None:
    features, weights, biases = cast(inputs(2, 48, (19, 40, 35), ((11, 14), (6, 7), (3, 4))), dtype)
    maps = ([LAYOUTS[layout](f) for f in features], [w.t().contiguous().t() for w in weights], biases)
    leaves = [f.requires_grad_() for f in maps[0]]
    with backend(KERNEL):
        wanted = run(fuse_pyramid, (features, weights, biases), dtype)
        fused = fuse_pyramid(*maps)
        grad = torch.randn(fused.shape, generator=torch.Generator().manual_seed(7)).to(fused)
        got = torch.autograd.grad(fused, leaves, grad.transpose(1, 2).contiguous().transpose(1, 2))
    if layout != "one image for all":
        assert torch.equal(fused, wanted[0])
        assert all(torch.equal(a, b) for a, b in zip(got, wanted[1:], strict=False))
    else:
        with backend("torch"):
            torch.testing.assert_close(fused, fuse_pyramid(*maps), rtol=2e-2, atol=2e-2)
    if layout == "channels last":
        assert all(g.is_contiguous(memory_format=torch.channels_last) for g in got)


def test_extreme_values_stay_finite_and_right() -> None:
    features, weights, biases = inputs(1, 32, (8, 9, 10), ((9, 9), (5, 5), (3, 3)))
    features[1][0, 2, 2, 2] = 1e30
    features[2] *= 1e-30
    assert_rule((features, weights, [b * 1e4 for b in biases]), torch.float32)


def test_definition_has_right_gradients() -> None:
    maps = cast(inputs(1, 3, (2, 1), ((4, 3), (2, 2))), torch.float64)
    leaves = [t.requires_grad_() for tensors in maps for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: fuse_pyramid(t[:2], t[2:4], t[4:]), leaves)


@pytest.mark.parametrize("need_features", [True, False])
def test_plain_backward_formulas_have_right_gradients(need_features: bool) -> None:
    maps = cast(inputs(2, 20, (3, 17, 6), ((9, 7), (5, 4), (11, 2))), torch.float64)
    truth = run(fuse_pyramid, maps, torch.float64)
    grad = torch.randn(truth[0].shape, generator=torch.Generator().manual_seed(7)).double()
    grad_features, grad_weights, grad_bias = plain_backward(grad, maps[0], maps[1], need_features)
    assert len(grad_features) == (3 if need_features else 0)
    for got, wanted in zip(grad_features, truth[1:4], strict=False):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)
    for got, wanted in zip((*grad_weights, grad_bias), truth[4:8], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


def test_frozen_maps_get_no_gradient() -> None:
    features, weights, biases = inputs(1, 32, (8, 9), ((6, 6), (3, 3)))
    wanted = under(KERNEL, (features, weights, biases), torch.float32)
    with backend(KERNEL):
        leaves = [t.requires_grad_() for t in (*weights, *biases)]
        fused = fuse_pyramid(features, weights, biases)
        grad = torch.randn(fused.shape, generator=torch.Generator().manual_seed(7))
        got = torch.autograd.grad(fused, leaves, grad)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted[3:], strict=True))


def test_fifty_runs_are_bitwise_equal() -> None:
    maps = inputs(2, 64, (24, 40, 130), ((19, 23), (10, 12), (5, 6)))
    first = under(KERNEL, maps, torch.float32)
    for _ in range(50):
        assert all(torch.equal(a, b) for a, b in zip(first, under(KERNEL, maps, torch.float32), strict=True))


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    maps, threads = inputs(2, 64, (24, 40, 130), ((60, 43), (30, 22), (15, 11))), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(under(KERNEL, maps, torch.bfloat16))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(channels_last: bool) -> None:
    features, weights, biases = cast(inputs(2, 20, (3, 17), ((7, 5), (4, 3))), torch.bfloat16)
    if channels_last:
        features = [f.to(memory_format=torch.channels_last) for f in features]
    leaves = [f.requires_grad_() for f in features], [w.requires_grad_() for w in weights], biases[0].requires_grad_()
    torch.library.opcheck(torch.ops.d2ls_fast.fuse_pyramid.default, leaves)
    features, weights = [f.detach() for f in features], [w.detach() for w in weights]
    for need_features in (True, False):
        arguments = (torch.randn(2, 35, 20).bfloat16(), features, weights, need_features)
        torch.library.opcheck(torch.ops.d2ls_fast.fuse_pyramid_backward.default, arguments)


@pytest.mark.parametrize("name", ["torch", KERNEL])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(name: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    # Plain PyTorch is traced with its gradients, but not compiled: that takes minutes for the upsampling.
    compiler = "inductor" if name == "cpu" else "aot_eager"
    with backend(name):
        compiled = torch.compile(fuse_pyramid, fullgraph=True, dynamic=dynamic, backend=compiler)
        for size in ((8, 10), (9, 7))[: 1 + dynamic]:
            maps = inputs(2, 32, (6, 7), (size, ((size[0] + 1) // 2, (size[1] + 1) // 2)))
            results, wanted = run(compiled, maps, torch.float32), run(fuse_pyramid, maps, torch.float32)
            for result, expected in zip(results, wanted, strict=True):
                torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_autocast_computes_in_its_dtype() -> None:
    maps = inputs(1, 32, (6, 7), ((8, 8), (4, 4)))
    for name in ("torch", KERNEL):
        with backend(name), torch.autocast("cpu", dtype=torch.bfloat16):
            fused = fuse_pyramid(*maps)
        assert fused.dtype is torch.bfloat16
        torch.testing.assert_close(fused.float(), fuse_pyramid(*maps), rtol=3e-2, atol=3e-2)


def test_definition_is_the_sum_of_upsampled_levels() -> None:
    (fine, coarse), weights, biases = inputs(1, 4, (2, 3), ((4, 6), (2, 3)))
    fused = fuse_pyramid_definition([fine, coarse], weights, biases[0] + biases[1])
    up = torch.nn.Upsample(scale_factor=2, mode="bilinear")
    levels = [
        torch.einsum("oc,bchw->bohw", weight, feature) + bias[:, None, None]
        for weight, feature, bias in zip(weights, [fine, coarse], biases, strict=True)
    ]
    torch.testing.assert_close(fused, (levels[0] + up(levels[1])).flatten(2).transpose(1, 2))


def test_wrong_calls_name_the_argument() -> None:
    features, weights, biases = inputs(2, 8, (3, 4), ((4, 4), (2, 2)))
    wrong: dict[str, tuple[Any, Any, Any]] = {
        "features must hold at least one map": ([], [], []),
        "weights must hold one for each of 2": (features, weights[:1], biases),
        "biases must hold one for each of 2": (features, weights, biases[:1]),
        r"features\[1\] must be \[B, c, h, w\] and not empty": ([features[0], features[1][..., :0]], weights, biases),
        r"features\[0\] must be \[B, c, h, w\]": ([features[0][0], features[1]], weights, biases),
        r"features\[1\] must hold 2 images": ([features[0], features[1][:1]], weights, biases),
        r"weights\[1\] must be \[8, 4\]": (features, [weights[0], weights[0]], biases),
        r"weights\[0\] must be \[C, 3\]": (features, [w[:0] for w in weights], [b[:0] for b in biases]),
        r"biases\[1\] must be \[8\]": (features, weights, [biases[0], biases[1][:3]]),
        r"features\[1\] must be on the device": ([features[0], features[1].to("meta")], weights, biases),
        r"weights\[0\] must have the dtype": (features, [w.half() for w in weights], biases),
        r"features\[1\] must have the dtype": ([features[0], features[1].half()], weights, biases),
        "floating-point": ([f.long() for f in features], weights, biases),
    }
    for message, arguments in wrong.items():
        with pytest.raises(ValueError, match=f"fuse_pyramid: .*{message}"):
            fuse_pyramid(*arguments)
