"""Cross-attention and the alternating interaction: the folded form against the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from d2ls_fast.backends import backend
from d2ls_fast.nn.cross_attention import CrossAttention
from d2ls_fast.nn.interaction import AlternatingCrossAttention


def inputs(batch: int = 2, n: int = 35, k: int = 5, c: int = 32, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, n, c), (n, c), (batch, k, c))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def outputs_and_gradients(layer: torch.nn.Module, name: str, args: list[Tensor]) -> list[Tensor]:
    layer.zero_grad()
    args = [a.detach().requires_grad_() for a in args]
    with backend(name):
        dictionary, pixels = layer(*args)
        (dictionary.square().sum() + (pixels * torch.linspace(-1, 1, pixels.shape[-1])).sum()).backward()
    gradients = [t.grad for t in (*args, *layer.parameters())]
    assert all(g is not None for g in gradients)
    return [dictionary, pixels, *gradients]  # type: ignore[list-item]


def test_definition_is_multi_head_attention() -> None:
    layer = CrossAttention(16, num_heads=2, downsample_rate=1).double()
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, n, 16, dtype=torch.float64) for n in (3, 7, 7))
    projections = (layer.q_proj, layer.k_proj, layer.v_proj)
    wanted, _ = torch.nn.functional.multi_head_attention_forward(
        *(t.transpose(0, 1) for t in (query, key, value)), 16, 2,
        torch.cat([p.weight for p in projections]), torch.cat([p.bias for p in projections]),
        None, None, False, 0.0, layer.out_proj.weight, layer.out_proj.bias, need_weights=False,
    )  # fmt: skip
    torch.testing.assert_close(layer(query, key, value), wanted.transpose(0, 1))


@pytest.mark.parametrize(
    ("heads", "rate", "alternating", "final", "k"),
    [(4, 2, True, True, 5), (8, 2, True, True, 1), (1, 1, True, False, 3), (2, 4, False, True, 5)],
)
def test_folded_equals_definition(heads: int, rate: int, alternating: bool, final: bool, k: int) -> None:
    torch.manual_seed(0)
    layer = AlternatingCrossAttention(32, heads, 2, rate, alternating, final).double()
    args = inputs(k=k)
    for got, wanted in zip(
        outputs_and_gradients(layer, "torch", args), outputs_and_gradients(layer, "reference", args), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_positional_encoding_per_image() -> None:
    layer = AlternatingCrossAttention(32, 4, 1).double()
    pixels, pixel_pe, dictionary = inputs()
    shared = layer(pixels, pixel_pe, dictionary)
    own = layer(pixels, pixel_pe.expand(2, -1, -1).contiguous(), dictionary)
    torch.testing.assert_close(own, shared)


@pytest.mark.parametrize("name", ["reference", "torch", "auto"])
@pytest.mark.parametrize("alternating", [True, False])
@pytest.mark.parametrize("own_pe", [False, True])
def test_dictionaries_stacked_are_as_many_interactions(name: str, alternating: bool, own_pe: bool) -> None:
    torch.manual_seed(0)
    layer = AlternatingCrossAttention(32, 4, 2, alternating=alternating)
    pixels, pixel_pe, _ = inputs(dtype=torch.float32)
    if own_pe:
        pixel_pe = torch.stack([pixel_pe, 2 * pixel_pe]).detach().requires_grad_()
    starts = torch.randn(3 * 2, 5, 32)
    weights = torch.randn(3 * 2, 35, 32)

    def loss(dictionary: Tensor, refined: Tensor, weights: Tensor) -> Tensor:
        return dictionary.square().sum() + (refined * weights).sum()

    with backend(name):
        dictionary, refined = layer(pixels, pixel_pe, starts)
        pairs = [layer(pixels, pixel_pe, start) for start in starts.split(2)]
        torch.testing.assert_close(dictionary, torch.cat([d for d, _ in pairs]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(refined, torch.cat([r for _, r in pairs]), rtol=1e-4, atol=1e-5)
        leaves = [pixels, pixel_pe, *(p for p in layer.parameters())]
        together = torch.autograd.grad(loss(dictionary, refined, weights), leaves)
        alone = sum(loss(*pair, w) for pair, w in zip(pairs, weights.split(2), strict=True))
        for got, wanted in zip(together, torch.autograd.grad(alone, leaves), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


def test_dictionary_of_another_batch_is_refused() -> None:
    pixels, pixel_pe, dictionary = inputs()
    with pytest.raises(ValueError, match=r"dictionary must be \[G \* 2, K, 32\]"):
        AlternatingCrossAttention(32, 4)(pixels, pixel_pe, dictionary[:1])


def test_dictionary_only_leaves_the_pixels_alone() -> None:
    layer = AlternatingCrossAttention(32, 4, 2, alternating=False).double()
    pixels, pixel_pe, dictionary = inputs()
    refined, same = layer(pixels, pixel_pe, dictionary)
    assert same is pixels
    assert not torch.allclose(refined, dictionary)


def test_stage_dictionaries() -> None:
    layer = AlternatingCrossAttention(32, 4, 3, final_attention=False).double()
    result = layer.run(*inputs())
    assert len(result.stage_dictionaries) == 3
    assert torch.equal(result.stage_dictionaries[-1], result.dictionary)


@pytest.mark.parametrize("alternating", [True, False])
@pytest.mark.parametrize("form", ["folded", "projected"])
def test_pixels_after_each_stage_are_kept_where_asked_for(form: str, alternating: bool) -> None:
    layer = AlternatingCrossAttention(32, 4, 3, alternating=alternating, form=form).double()  # type: ignore[arg-type]
    pixels, pixel_pe, dictionary = inputs()
    both = torch.cat((dictionary, dictionary.flip(0)))
    assert layer.run(pixels, pixel_pe, both).stage_pixels == []
    with backend("reference"):
        wanted = layer.run(pixels, pixel_pe, both, keep_pixels=True)
    with backend("torch"):
        got = layer.run(pixels, pixel_pe, both, keep_pixels=True)
    assert len(got.stage_pixels) == 3 and torch.equal(got.stage_pixels[-1], got.pixels)
    torch.testing.assert_close(got.stage_pixels, wanted.stage_pixels)
    if alternating:
        assert not torch.equal(got.stage_pixels[0], got.stage_pixels[1])


def test_half_precision_is_no_worse_than_twice_the_definition() -> None:
    torch.manual_seed(0)
    layer = AlternatingCrossAttention(32, 4, 2).double()
    args = inputs(n=200)
    with torch.no_grad():
        exact = layer(*args)
        half, half_args = layer.bfloat16(), [a.bfloat16() for a in args]
        with backend("reference"):
            plain = half(*half_args)
        with backend("torch"):
            got = half(*half_args)
    for g, p, e in zip(got, plain, exact, strict=True):
        assert g.dtype is torch.bfloat16
        assert (g - e).abs().max() <= 2 * (p - e).abs().max() + 1e-2


@pytest.mark.parametrize("name", ["reference", "torch"])
def test_autocast_keeps_each_stream_in_its_precision(name: str) -> None:
    layer = AlternatingCrossAttention(32, 4, 1)
    pixels, pixel_pe, dictionary = inputs(dtype=torch.float32)
    with backend(name), torch.autocast("cpu", dtype=torch.bfloat16):
        refined, updated = layer(pixels.bfloat16(), pixel_pe, dictionary)
    assert refined.dtype is torch.float32
    assert updated.dtype is torch.bfloat16
    torch.testing.assert_close(refined, layer(pixels, pixel_pe, dictionary)[0], rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide the attention width 16"),
        ({"num_heads": 0}, "num_heads must divide"),
        ({"downsample_rate": 3}, "downsample_rate must divide embed_dim 32"),
        ({"stages": 0}, "stages must be at least 1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlternatingCrossAttention(**{"embed_dim": 32, "num_heads": 4, **options})


@pytest.mark.parametrize("name", ["torch", "auto"])
def test_one_compilation_serves_every_number_of_pixels(name: str) -> None:
    layer = AlternatingCrossAttention(32, 4, 2)
    torch._dynamo.reset()
    with backend(name):
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for n in (35, 48, 1023, 7, 113):
            args = inputs(n=n, dtype=torch.float32)
            for tensor, dim in zip(args[:2], (1, 0), strict=True):
                torch._dynamo.mark_dynamic(tensor, dim)
            with torch._dynamo.config.patch(error_on_recompile=n != 35):
                results = compiled(*args)
            for result, wanted in zip(results, layer(*args), strict=True):
                torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-5)
