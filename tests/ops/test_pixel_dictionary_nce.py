"""pixel_dictionary_nce: kernels against the definition, gradients, options, and its standing in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate
from torch import Tensor

from d2ls_fast.backends import backend, backends
from d2ls_fast.ops import pixel_dictionary_nce
from d2ls_fast.ops._nce import nce_sums_backward, nce_sums_definition

KERNEL = "cpu" if backends()["cpu"] == "available" else "torch"
NAMES = ["loss", "grad_pixels", "grad_dictionary"]
DIRECTIONS = ["pixels", "dictionary", "both"]


def inputs(b: int, n: int, k: int, c: int, p: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels near their entry, a quarter of them without label, and the last class of several absent."""
    generator = torch.Generator().manual_seed(seed + 100 * n + k)
    dictionary = torch.randn(b, k * p, c, generator=generator)
    target = torch.randint(0, max(1, k - 1), (b, n), generator=generator)
    own = dictionary[:, ::p].gather(1, target.unsqueeze(-1).expand(b, n, c))
    pixels = own + 2 * torch.randn(b, n, c, generator=generator)
    target = target.where(torch.rand(b, n, generator=generator) > 0.25, 255)
    target[0, 0] = 0
    return pixels, dictionary, target


def cast(tensors: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    pixels, dictionary, target = tensors
    wide = torch.promote_types(dtype, torch.float32)
    return pixels.detach().to(dtype), dictionary.detach().to(wide), target


def run(function: Callable[..., Tensor], tensors: Any, dtype: torch.dtype, **options: Any) -> list[Tensor]:
    """The loss and the gradients of pixels and dictionary."""
    pixels, dictionary, target = cast(tensors, dtype)
    leaves = [t.clone().requires_grad_() for t in (pixels, dictionary)]
    loss = function(*leaves, target, **options)
    (3 * loss).backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def under(name: str, *arguments: Any, **options: Any) -> list[Tensor]:
    with backend(name):
        return run(pixel_dictionary_nce, *arguments, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("b", "n", "k", "c", "options"),
    [
        (1, 1, 1, 16, {}),
        (1, 1, 7, 64, {"direction": "both"}),
        (3, 113, 7, 64, {}),
        (3, 113, 7, 96, {"direction": "both", "balanced": True}),
        (4, 203, 16, 33, {"direction": "dictionary"}),
        (5, 203, 2, 64, {"direction": "both", "temperature": 0.02}),
        (1, 1023, 19, 256, {"balanced": True, "temperature": 1.0}),
        (1, 1023, 150, 64, {"direction": "both"}),
        (1, 16384, 7, 32, {"direction": "both"}),
        (2, 113, 5, 64, {"direction": "both", "prototypes": 3}),
        (1, 500, 50, 96, {"balanced": True, "prototypes": 3}),
        (2, 65, 3, 1024, {"direction": "dictionary", "prototypes": 2}),
    ],
)
def test_kernel_is_as_accurate_as_the_unfused_path(b, n, k, c, options, dtype) -> None:
    tensors = cast(inputs(b, n, k, c, options.get("prototypes", 1)), dtype)
    truth = under("reference", tensors, torch.float64, **options)
    plain = under("reference", tensors, dtype, **options)
    results = under(KERNEL, tensors, dtype, **options)
    assert results[0].dtype is torch.float32 and results[0].shape == ()
    assert results[1].dtype is dtype and results[2].dtype is torch.float32
    assert_accurate(NAMES, results, plain, truth, dtype)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("prototypes", [1, 2])
def test_definition_has_right_gradients(direction: str, prototypes: int) -> None:
    pixels, dictionary, target = cast(inputs(2, 6, 3, 5, prototypes), torch.float64)
    leaves = [pixels.requires_grad_(), dictionary.requires_grad_()]

    def loss(*leaves: Tensor) -> Tensor:
        return pixel_dictionary_nce(*leaves, target, 0.5, 255, True, direction, prototypes)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize(("rows", "columns"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("prototypes", [1, 3])
def test_plain_backward_formulas_have_right_gradients(rows: bool, columns: bool, prototypes: int) -> None:
    pixels, dictionary, target = cast(inputs(3, 23, 4, 8, prototypes), torch.float64)
    pixels[0, 1] = 0.0
    target[0, 1], target[1] = 2, 255
    leaves = [pixels.requires_grad_(), (3 * F.normalize(dictionary, dim=-1)).requires_grad_()]
    options = (prototypes, 255, rows, columns)
    sums = nce_sums_definition(*leaves, target, *options)
    generator = torch.Generator().manual_seed(3)
    gradients = [torch.randn(t.shape, generator=generator).double() for t in sums[:3]]
    wanted = [s for s in zip(sums, gradients, strict=False) if s[0].requires_grad]
    torch.autograd.backward([s for s, _ in wanted], [g for _, g in wanted])
    with torch.no_grad():
        results = nce_sums_backward(*leaves, target, sums[2], *gradients, *options)
    for result, leaf in zip(results, leaves, strict=True):
        torch.testing.assert_close(result, leaf.grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("rows", "columns"), [(True, False), (False, True), (True, True)])
def test_sums_of_the_kernel_are_those_of_the_definition(rows: bool, columns: bool) -> None:
    pixels, dictionary, target = inputs(3, 203, 5, 24, 2)
    target[1] = 255
    target[2, 7:9], target[0, 3] = -1, 5
    entries = F.normalize(dictionary, dim=-1) / 0.1
    options = (2, 255, rows, columns)
    results = torch.ops.d2ls_fast.nce_sums(pixels, entries, target, *options)
    for result, expected in zip(results, nce_sums_definition(pixels, entries, target, *options), strict=True):
        assert result.dtype is expected.dtype
        torch.testing.assert_close(result, expected, rtol=2e-6, atol=2e-6)
    assert results[3][:, -1].tolist() == [1, 0, 2] and not results[2][1].any()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", ["torch", KERNEL])
def test_images_without_labels_give_zero(name: str, direction: str) -> None:
    pixels, dictionary, target = inputs(2, 70, 3, 16)
    for labels in (torch.full_like(target, 255), torch.stack((target[0], torch.full_like(target[1], 255)))):
        loss, *gradients = under(name, (pixels, dictionary, labels), torch.float32, direction=direction)
        assert all(gradient.isfinite().all() and not gradient[1].any() for gradient in gradients)
        assert (loss == 0.0) == (labels == 255).all()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_pixels_without_length_are_handled_as_normalize_does(direction: str) -> None:
    pixels, dictionary, target = inputs(1, 40, 4, 16)
    pixels[0, 3] = 0.0
    pixels[0, 5] = 1e-14
    dictionary[0, 1] = 0.0
    target[0, 3] = target[0, 5] = 2
    short = torch.zeros(40, dtype=torch.bool)
    short[3] = short[5] = True

    def parts(name: str, dtype: torch.dtype) -> list[Tensor]:
        """Apart, as the gradients of the short ones are about 1e12 times those of the others."""
        loss, grad, grad_dictionary = under(name, (pixels, dictionary, target), dtype, direction=direction)
        return [loss, grad[:, short], grad[:, ~short], grad_dictionary[:, 1], grad_dictionary[:, [0, 2, 3]]]

    names = ["loss", "short pixels", "other pixels", "short entry", "other entries"]
    results, plain = parts(KERNEL, torch.float32), parts("reference", torch.float32)
    assert_accurate(names, results, plain, parts("reference", torch.float64), torch.float32)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("prototypes", [1, 2])
def test_extreme_temperatures_and_magnitudes_stay_finite_and_right(direction: str, prototypes: int) -> None:
    pixels, dictionary, target = inputs(2, 150, 5, 32, prototypes)
    tensors = (pixels * 1e8, dictionary * 1e-6, target)
    for temperature in (1e-4, 1e4):
        options = {"direction": direction, "prototypes": prototypes, "temperature": temperature}
        truth = under("reference", tensors, torch.float64, **options)
        plain = under("reference", tensors, torch.float32, **options)
        results = under(KERNEL, tensors, torch.float32, **options)
        assert_accurate(NAMES, results, plain, truth, torch.float32, largest_score=1 / temperature)


def test_ignored_pixels_take_no_part_whatever_they_score() -> None:
    """Ignored pixels far above all others in every score, under a sharp temperature; ignore_index is a class."""
    pixels, dictionary, target = inputs(1, 130, 4, 16)
    target = target.where(target != 255, 3)
    pixels = pixels.where((target == 3).unsqueeze(-1), -dictionary.sum(1, keepdim=True))
    pixels[target == 3] = dictionary[0, 1]
    options = {"direction": "both", "temperature": 1e-3, "ignore_index": 3}
    truth = under("reference", (pixels, dictionary, target), torch.float64, **options)
    plain = under("reference", (pixels, dictionary, target), torch.float32, **options)
    results = under(KERNEL, (pixels, dictionary, target), torch.float32, **options)
    assert_accurate(NAMES, results, plain, truth, torch.float32, largest_score=1e3)
    assert not results[1][target == 3].any()


def test_non_contiguous_inputs() -> None:
    pixels, dictionary, target = inputs(2, 77, 5, 24)
    wanted = run(pixel_dictionary_nce, (pixels, dictionary, target), torch.float32, direction="both")
    image = pixels.transpose(1, 2).contiguous().requires_grad_()  # [B, C, N]
    wide = dictionary.repeat_interleave(2, 1).requires_grad_()
    labels = target.repeat_interleave(2, 1)[:, ::2]
    loss = pixel_dictionary_nce(image.transpose(1, 2), wide[:, ::2], labels, direction="both")
    (3 * loss).backward()
    assert torch.equal(loss, wanted[0])
    assert torch.equal(image.grad.transpose(1, 2), wanted[1]) and torch.equal(wide.grad[:, ::2], wanted[2])


def test_fifty_runs_are_bitwise_equal() -> None:
    tensors = inputs(2, 600, 5, 32, 2)
    options = {"direction": "both", "prototypes": 2, "balanced": True}
    first = run(pixel_dictionary_nce, tensors, torch.float32, **options)
    for _ in range(50):
        again = run(pixel_dictionary_nce, tensors, torch.float32, **options)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    tensors, threads = inputs(2, 700, 5, 32), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(pixel_dictionary_nce, tensors, torch.float32, direction="both"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck() -> None:
    pixels, dictionary, target = cast(inputs(2, 30, 4, 16, 2), torch.bfloat16)
    leaves = (pixels.requires_grad_(), dictionary.requires_grad_())
    torch.library.opcheck(torch.ops.d2ls_fast.nce_sums.default, (*leaves, target, 2, 255, True, True))
    sums = [torch.randn(2, 4) for _ in range(4)]
    plain = (pixels.detach(), dictionary.detach(), target, *sums, 2, 255, True, True)
    torch.library.opcheck(torch.ops.d2ls_fast.nce_sums_backward.default, plain)


@pytest.mark.parametrize(
    ("name", "dynamic", "compiler"),
    [("torch", True, "aot_eager"), (KERNEL, False, "aot_eager"), (KERNEL, True, "inductor")],
)
def test_compiles_whole(name: str, dynamic: bool, compiler: str) -> None:
    torch._dynamo.reset()
    options = {"direction": "both", "prototypes": 2}
    with backend(name):
        compiled = torch.compile(pixel_dictionary_nce, fullgraph=True, dynamic=dynamic, backend=compiler)
        for n in (60, 77) if dynamic else (60,):
            tensors = inputs(2, n, 5, 32, 2)
            results = run(compiled, tensors, torch.float32, **options)
            for result, expected in zip(results, under(name, tensors, torch.float32, **options), strict=True):
                torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_autocast_changes_nothing() -> None:
    tensors = inputs(1, 50, 3, 32)
    wanted = pixel_dictionary_nce(*tensors)
    for name in ("torch", KERNEL):
        with backend(name), torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(pixel_dictionary_nce(*tensors), wanted)


def test_dictionary_may_have_any_float_dtype() -> None:
    pixels, dictionary, target = inputs(1, 50, 3, 32)
    for dtype in (torch.bfloat16, torch.float64):
        leaf = dictionary.to(dtype).requires_grad_()
        loss = pixel_dictionary_nce(pixels.bfloat16(), leaf, target)
        loss.backward()
        assert loss.dtype is torch.float32 and leaf.grad.dtype is dtype and leaf.grad.isfinite().all()


def test_wrong_calls_name_the_argument() -> None:
    good = dict(zip(["pixels", "dictionary", "target"], inputs(2, 12, 3, 8, 2), strict=True)) | {"prototypes": 2}
    pixels, dictionary, target = good["pixels"], good["dictionary"], good["target"]
    assert isinstance(pixels, Tensor) and isinstance(dictionary, Tensor) and isinstance(target, Tensor)
    wrong: dict[str, dict[str, Any]] = {
        r"pixels must be \[B, N, C\]": {"pixels": pixels[0]},
        "pixels must be .*not empty": {"pixels": pixels[:, :0]},
        "pixels must be a floating-point": {"pixels": pixels.long()},
        r"dictionary must be \[2, K \* P, 8\]": {"dictionary": dictionary[..., :4]},
        r"dictionary must be \[2, K \* P": {"dictionary": dictionary[:, :0]},
        "dictionary must be a floating-point": {"dictionary": dictionary.long()},
        "dictionary must be on the device": {"dictionary": dictionary.to("meta")},
        "target must be int64": {"target": target.int()},
        "target must label the pixels": {"target": target[:, :5]},
        "target must be on the device": {"target": target.to("meta")},
        "prototypes must divide the 6 rows": {"prototypes": 4},
        "prototypes must be at least 1": {"prototypes": 0},
        "direction must be one of pixels, dictionary, both": {"direction": "up"},
    }
    wrong |= {f"temperature must be .*got {t}": {"temperature": t} for t in (0.0, -1.0, float("inf"), float("nan"))}
    for message, change in wrong.items():
        with pytest.raises(ValueError, match=f"pixel_dictionary_nce: {message}"):
            pixel_dictionary_nce(**{**good, **change})


@pytest.mark.parametrize("name", ["torch", KERNEL])
@pytest.mark.parametrize("label", [3, -1, 254, 2**40, -(2**63)])
def test_a_label_out_of_range_is_refused(name: str, label: int) -> None:
    pixels, dictionary, target = inputs(2, 80, 3, 8)
    target[1, 70] = label
    with backend(name), pytest.raises(ValueError, match="target must hold classes from 0 to 2 or ignore_index 255, 1 "):
        pixel_dictionary_nce(pixels, dictionary, target)
    compiled = torch.compile(pixel_dictionary_nce, fullgraph=True, backend="eager")
    with backend(name), pytest.raises(RuntimeError, match="target must hold classes"):
        compiled(pixels, dictionary, target)
