"""attend: the definition, the compiled kernels against it, and its standing as a PyTorch operator."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accuracy import assert_accurate
from torch import Tensor

from d2ls_fast.backends import backend, backends
from d2ls_fast.ops import attend
from d2ls_fast.ops.attend import attend_definition

NAMES = ["context", "log_sum_exp", "grad_pixels", "grad_pe", "grad_query"]
KERNEL = "cpu" if backends()["cpu"] == "available" else "torch"
OPERATOR = torch.ops.d2ls_fast.attend.default
ISAS = ["portable", "avx2", "avx512"]  # that D2LS_FAST_ISA can ask for


def inputs(
    b: int, n: int, j: int, c: int, dtype: torch.dtype, shared_pe: bool = True, scale: float = 1.0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1000 * n + j)
    pixels = torch.randn(b, n, c, generator=generator)
    pixel_pe = torch.randn(*((n, c) if shared_pe else (b, n, c)), generator=generator)
    query = torch.randn(b, j, c, generator=generator) * scale * c**-0.5
    return [t.to(dtype) for t in (pixels, pixel_pe, query)]


def run(function, tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Outputs and all gradients, of a loss that uses both outputs."""
    leaves = [t.to(dtype).detach().requires_grad_() for t in tensors]
    context, log_sum_exp = function(*leaves)
    generator = torch.Generator().manual_seed(7)
    grads = [torch.randn(o.shape, generator=generator).to(o) for o in (context, log_sum_exp)]
    torch.autograd.backward([context, log_sum_exp], grads)
    return [context.detach(), log_sum_exp.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("b", "n", "j", "c", "shared_pe"),
    [
        (1, 1, 1, 64, True),
        (2, 113, 56, 256, True),
        (5, 203, 16, 96, False),
        (1, 1023, 40, 256, True),
        (4, 64, 7, 100, True),
        (2, 65, 3, 37, False),
        (2, 700, 1200, 64, False),
        (1, 257, 8, 1024, True),
        (1, 16384, 56, 256, True),
    ],
)
def test_kernel_is_as_accurate_as_the_unfused_path(b, n, j, c, shared_pe, dtype) -> None:
    tensors = inputs(b, n, j, c, dtype, shared_pe)
    truth = run(attend_definition, tensors, torch.float64)
    plain = run(attend_definition, tensors, dtype)
    with backend(KERNEL):
        results = run(attend, tensors, dtype)
    assert [r.dtype for r in results] == [torch.float32, torch.float32, dtype, dtype, dtype]
    assert_accurate(NAMES, results, plain, truth, dtype)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_is_accurate(isa: str) -> None:
    """The set is chosen once a process, so another process runs the accuracy tests with it."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        __file__,
        str(Path(__file__).with_name("test_refine.py")),
        "-k",
        "as_accurate and (113 or 37)",
    ]
    finished = subprocess.run(
        command, env={**os.environ, "D2LS_FAST_ISA": isa}, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stdout[-2000:]
    asked = "import torch, d2ls_fast.ops; print(torch.ops.d2ls_fast.build_info())"
    if KERNEL == "cpu":
        shown = subprocess.run(
            [sys.executable, "-c", asked], env={**os.environ, "D2LS_FAST_ISA": isa}, capture_output=True, text=True
        )
        # Or a lower one, where the processor lacks what was asked for.
        assert shown.stdout.split()[0] in [f"isa={name}" for name in ISAS[: ISAS.index(isa) + 1]]


def test_definition_has_right_gradients() -> None:
    tensors = [t.requires_grad_() for t in inputs(2, 9, 4, 8, torch.float64, shared_pe=True)]
    assert torch.autograd.gradcheck(attend, tensors)


def test_plain_backward_formulas_have_right_gradients() -> None:
    """The fallback that machines without the compiled extension use, registered for a test-only check."""
    from d2ls_fast.ops.attend import _plain_backward

    for shared_pe in (True, False):
        tensors = inputs(2, 9, 4, 8, torch.float64, shared_pe)
        truth = run(attend_definition, tensors, torch.float64)
        generator = torch.Generator().manual_seed(7)
        grads = [torch.randn(t.shape, generator=generator).double() for t in truth[:2]]
        results = _plain_backward(*tensors, truth[0], truth[1], *grads, True)
        for result, expected in zip(results, truth[2:], strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_scores_stay_finite(scale: float, dtype: torch.dtype) -> None:
    tensors = inputs(1, 300, 8, 64, dtype, scale=scale)
    truth = run(attend_definition, tensors, torch.float64)
    assert truth[1].abs().max() > 1e4
    results = run(attend, tensors, dtype)
    assert all(torch.isfinite(r).all() for r in results)
    if dtype is not torch.float32:
        return
    rtol = 1e-5 if dtype is torch.float32 else 2e-2  # x + p may be rounded before it is multiplied
    torch.testing.assert_close(results[1], truth[1].float(), rtol=rtol, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_nan_is_not_hidden(dtype: torch.dtype) -> None:
    pixels, pixel_pe, query = inputs(1, 100, 3, 64, dtype)
    pixels[0, 50, 3] = float("nan")
    assert attend(pixels, pixel_pe, query)[0].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fifty_runs_are_bitwise_equal(dtype: torch.dtype) -> None:
    tensors = inputs(2, 1500, 20, 64, dtype)
    first = run(attend, tensors, dtype)
    for _ in range(50):
        assert all(torch.equal(a, b) for a, b in zip(first, run(attend, tensors, dtype), strict=True))


def test_result_does_not_depend_on_the_number_of_threads() -> None:
    tensors = inputs(1, 3000, 20, 64, torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(attend, tensors, torch.float32))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("b", "n", "j", "shared_pe", "dictionaries"), [(2, 203, 5, True, 2), (3, 57, 7, False, 3)])
def test_dictionaries_stacked_share_the_pixels(b, n, j, shared_pe, dictionaries, dtype) -> None:
    pixels, pixel_pe, _ = inputs(b, n, j, 64, dtype, shared_pe)
    queries = torch.cat([inputs(b, n, j + g, 64, dtype)[2][:, :j] for g in range(dictionaries)])

    def one_by_one(pixels: Tensor, pixel_pe: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        context, log_sum_exp = zip(*(attend_definition(pixels, pixel_pe, q) for q in query.split(b)), strict=True)
        return torch.cat(context), torch.cat(log_sum_exp)

    tensors = [pixels, pixel_pe, queries]
    truth, plain = run(one_by_one, tensors, torch.float64), run(one_by_one, tensors, dtype)
    for name in ("torch", KERNEL):
        with backend(name):
            assert_accurate(NAMES, run(attend, tensors, dtype), plain, truth, dtype)


def test_non_contiguous_inputs() -> None:
    pixels, pixel_pe, query = inputs(2, 60, 6, 64, torch.float32)
    expected = run(attend, [pixels, pixel_pe, query], torch.float32)
    image = pixels.transpose(1, 2).contiguous().view(2, 64, 6, 10).contiguous(memory_format=torch.channels_last)
    views = [
        image.flatten(2).transpose(1, 2),
        pixel_pe.t().contiguous().t(),
        query.transpose(0, 1).contiguous().transpose(0, 1),
    ]
    assert not views[1].is_contiguous()
    leaves = [v.detach().requires_grad_() for v in views]
    context, log_sum_exp = attend(*leaves)
    torch.testing.assert_close(context, expected[0])
    torch.testing.assert_close(log_sum_exp, expected[1])
    # A gradient that arrives as an expanded (stride 0) view.
    context.sum().backward()
    assert all(leaf.grad is not None and torch.isfinite(leaf.grad).all() for leaf in leaves)


def test_opcheck() -> None:
    for shared_pe, dtype in itertools.product((True, False), (torch.float32, torch.bfloat16)):
        tensors = [t.requires_grad_() for t in inputs(2, 33, 5, 32, dtype, shared_pe)]
        torch.library.opcheck(OPERATOR, tensors)
        outputs = [t.detach() for t in OPERATOR(*tensors)]
        arguments = (*(t.detach() for t in tensors), *outputs, *(torch.ones_like(t) for t in outputs), True)
        torch.library.opcheck(torch.ops.d2ls_fast.attend_backward.default, arguments)


# aot_eager traces forward and backward as inductor would, without spending its compile time.
@pytest.mark.parametrize(("name", "compiler"), [("torch", "aot_eager"), (KERNEL, "inductor")])
def test_compiles_whole_with_static_and_dynamic_shapes(name: str, compiler: str) -> None:
    torch._dynamo.reset()
    with backend(name):
        compiled = torch.compile(attend, fullgraph=True, dynamic=False, backend=compiler)
        tensors = inputs(1, 130, 5, 64, torch.float32)
        for result, expected in zip(
            run(compiled, tensors, torch.float32), run(attend, tensors, torch.float32), strict=True
        ):
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
        dynamic = torch.compile(attend, fullgraph=True, dynamic=True, backend=compiler)
        dynamic(*inputs(2, 60, 5, 64, torch.float32))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for n in (70, 113):
                tensors = inputs(2, n, 5, 64, torch.float32)
                torch.testing.assert_close(dynamic(*tensors)[0], attend(*tensors)[0], rtol=1e-4, atol=1e-4)


def test_autocast_casts_inputs() -> None:
    tensors = inputs(1, 64, 5, 64, torch.float32)
    expected = attend(*(t.bfloat16() for t in tensors))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = attend(*tensors)
    for result, wanted in zip(results, expected, strict=True):
        assert torch.equal(result, wanted)


def test_wrong_calls_name_the_argument() -> None:
    pixels, pixel_pe, query = inputs(2, 10, 3, 16, torch.float32)
    wrong = [
        ((pixels[0], pixel_pe, query), "pixels must be"),
        ((pixels, pixel_pe[:5], query), "pixel_pe must be"),
        ((pixels, pixel_pe[:, :8], query), "pixel_pe must be"),
        ((pixels, pixel_pe, query[:1]), "query must be"),
        ((pixels, pixel_pe, query[:, :0]), "at least one row"),
        ((pixels, pixel_pe, query[:0]), "at least one row"),
        ((pixels, pixel_pe, torch.cat([query, query])[:3]), r"query must be \[G \* 2, J, 16\]"),
        ((pixels[:, :0], pixel_pe[:0], query), "must not be empty"),
        ((pixels, pixel_pe.double(), query), "pixel_pe must have the dtype"),
        ((pixels, pixel_pe, query.half()), "query must have the dtype"),
        ((pixels, pixel_pe.to("meta"), query), "pixel_pe must be on the device"),
        (tuple(t.long() for t in (pixels, pixel_pe, query)), "floating-point"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            attend(*arguments)
    if KERNEL == "cpu":
        for arguments, _message in wrong[:5]:
            with pytest.raises(RuntimeError, match="d2ls_fast: "):
                OPERATOR(*arguments)
