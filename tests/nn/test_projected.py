"""The projected form of the interaction: equal to the folded one, and taken where it is cheaper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accuracy import assert_accurate
from torch import Tensor

from d2ls_fast import _extension
from d2ls_fast.backends import backend
from d2ls_fast.nn.cost import costs, projecting_pays
from d2ls_fast.nn.interaction import AlternatingCrossAttention


def inputs(k: int, batch: int = 2, n: int = 70, c: int = 32, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, n, c), (n, c), (batch, k, c))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def outputs_and_gradients(layer: AlternatingCrossAttention, name: str, form: Any, args: list[Tensor]) -> list[Tensor]:
    layer.zero_grad()
    layer.form = form
    args = [a.detach().requires_grad_() for a in args]
    with backend(name):
        dictionary, pixels = layer(*args)
        (dictionary.square().sum() + (pixels * torch.linspace(-1, 1, pixels.shape[-1]).to(pixels)).sum()).backward()
    gradients = [t.grad for t in (*args, *layer.parameters())]
    assert all(g is not None for g in gradients)
    return [dictionary, pixels, *gradients]  # type: ignore[list-item]


ABLATIONS = [(4, 2, True, True), (8, 2, True, False), (1, 1, True, True), (2, 4, False, True)]


@pytest.mark.parametrize(("heads", "rate", "alternating", "final"), ABLATIONS)
def test_projected_equals_the_definition(heads: int, rate: int, alternating: bool, final: bool) -> None:
    torch.manual_seed(0)
    layer = AlternatingCrossAttention(32, heads, 2, rate, alternating, final).double()
    args = inputs(19)
    results = outputs_and_gradients(layer, "torch", "projected", args)
    for got, wanted in zip(results, outputs_and_gradients(layer, "reference", "auto", args), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", ["folded", "projected"])
def test_both_forms_are_as_accurate_as_the_unfused_path(form: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = AlternatingCrossAttention(64, 8, 2).to(dtype)
    args = inputs(150, n=203, c=64, dtype=dtype)
    plain = outputs_and_gradients(layer, "reference", "auto", args)
    results = outputs_and_gradients(layer, "auto", form, args)
    truth = outputs_and_gradients(layer.double(), "reference", "auto", [a.double() for a in args])
    names = ["dictionary", "pixels", "grad_pixels", "grad_pe", "grad_dictionary"]
    names += [name for name, _ in layer.named_parameters()]
    # A key's bias shifts all scores alike: its gradient is zero but for rounding, and has no scale of its own.
    kept = [i for i, name in enumerate(names) if not name.endswith("k_proj.bias")]
    assert_accurate(*([values[i] for i in kept] for values in (names, results, plain, truth)), dtype)


def test_images_may_have_their_own_positions() -> None:
    layer = AlternatingCrossAttention(32, 4, 1, form="projected").double()
    pixels, pixel_pe, dictionary = inputs(9)
    own = layer(pixels, pixel_pe.expand(2, -1, -1).contiguous(), dictionary)
    torch.testing.assert_close(own, layer(pixels, pixel_pe, dictionary))


def test_several_dictionaries_over_the_same_pixels() -> None:
    torch.manual_seed(0)
    layer = AlternatingCrossAttention(32, 4, 2, form="projected").double()
    pixels, pixel_pe, dictionary = inputs(9)
    other = dictionary.flip(1) + 1
    both = layer(pixels, pixel_pe, torch.cat([dictionary, other]))
    for result, first, second in zip(
        both, layer(pixels, pixel_pe, dictionary), layer(pixels, pixel_pe, other), strict=True
    ):
        torch.testing.assert_close(result, torch.cat([first, second]))


def test_stage_dictionaries() -> None:
    result = AlternatingCrossAttention(32, 4, 3, final_attention=False, form="projected").double().run(*inputs(9))
    assert len(result.stage_dictionaries) == 3
    assert torch.equal(result.stage_dictionaries[-1], result.dictionary)


def test_autocast_keeps_each_stream_in_its_precision() -> None:
    layer = AlternatingCrossAttention(32, 4, 1, form="projected")
    pixels, pixel_pe, dictionary = inputs(9, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        refined, updated = layer(pixels.bfloat16(), pixel_pe, dictionary)
    assert refined.dtype is torch.float32
    assert updated.dtype is torch.bfloat16
    torch.testing.assert_close(refined, layer(pixels, pixel_pe, dictionary)[0], rtol=0.1, atol=0.1)


def test_few_entries_are_folded_and_many_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = AlternatingCrossAttention(256, 8, 1)
    run_projected, projected = layer._run_projected, []

    def recorded(pixels: Tensor, pixel_pe: Tensor, dictionary: Tensor, *options: Any) -> Any:
        projected.append(dictionary.shape[1])
        return run_projected(pixels, pixel_pe, dictionary, *options)

    monkeypatch.setattr(layer, "_run_projected", recorded)
    for k in (1, 7, 16, 32, 64, 150):
        layer.run(*inputs(k, batch=1, n=20, c=256, dtype=torch.float32))
    assert projected == [32, 64, 150]


def test_cost_model_moves_with_the_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    def crossover(
        channels: int = 256, width: int = 128, heads: int = 8, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> int:
        pays = [projecting_pays(channels, width, heads, k, costs(device, dtype)) for k in range(1, 400)]
        assert pays == sorted(pays), "once it pays, it pays for any more entries"
        return pays.index(True) + 1

    assert crossover() == 20
    assert crossover(heads=16) < crossover() < crossover(heads=4)
    assert crossover(width=64) < crossover() < crossover(width=256)
    assert crossover(64, 32) < crossover() < crossover(1024, 512)
    assert 32 < crossover(device="cuda") < 150
    monkeypatch.setattr(_extension, "BF16_PRODUCTS", False)
    assert crossover(dtype=torch.bfloat16) == crossover()
    monkeypatch.setattr(_extension, "BF16_PRODUCTS", True)
    assert 34 <= crossover(dtype=torch.bfloat16) <= 40
    assert crossover(dtype=torch.float16) == crossover()


def test_compiles_whole_in_both_forms() -> None:
    torch._dynamo.reset()
    layer = AlternatingCrossAttention(64, 8, 2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for k in (5, 40):
        args = inputs(k, c=64, dtype=torch.float32)
        for result, expected in zip(compiled(*args), layer(*args), strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="form must be one of auto, folded, projected, got 'wide'"):
        AlternatingCrossAttention(32, 4, form="wide")  # type: ignore[arg-type]
