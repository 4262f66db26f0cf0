"""What differs from the release is left alone and named; what only looks different is replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from patched_models import CHANNELS, WHERE, assert_same, maps, results, tiny
from torch import Tensor, nn

import d2ls_fast as d2
from d2ls_fast.benchmarks.official_structure import (
    Attention,
    Decoder,
    FeatureProjection,
    GivenMaps,
    Interactor,
    InteractorLayer,
    OfficialStructure,
)
from d2ls_fast.models.patching.fast import Fast


def become(module: nn.Module, kind: type[nn.Module]) -> None:
    module.__class__ = kind


class Dropping(Attention):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.dropout(super().forward(q, k, v), 0.1, self.training)


class SelfAttending(InteractorLayer):
    def forward(self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        queries = self.norm1(queries + self.self_attn(queries, queries, queries))
        return super().forward(queries, keys, query_pe, key_pe)


class Prototypes(Decoder):
    """Three entries of one class."""

    def inference(self, image_embeddings: Tensor, image_pe: Tensor, tokens: Tensor) -> Tensor:
        scores = super().inference(image_embeddings, image_pe, tokens)
        return scores.unflatten(1, (-1, 3)).logsumexp(2)


class Cropping(OfficialStructure):
    """Changes what follows the neck."""

    def forward(self, x: Any) -> Any:
        logits = super().forward(x)
        return (logits[0][..., :40, :70], *logits[1:]) if self.training else F.interpolate(logits, size=(40, 70))


class OtherNeck(OfficialStructure):
    """Fine to coarse, or with one level seen twice."""

    nearest = extra = False

    def forward(self, x: Any) -> Any:
        self.multi_scale_features.clear()
        self.backbone(x)
        features = self.multi_scale_features
        pairs = [(each, each.shape[2:]) for each in features]
        levels = [self.linear_c[i](each).transpose(1, 2).unflatten(2, size) for i, (each, size) in enumerate(pairs)]
        mode: Any = {"mode": "nearest"} if self.nearest else {"mode": "bilinear", "align_corners": False}
        joined = torch.cat([F.interpolate(each, pairs[0][1], **mode) for each in levels[::-1]], 1)
        logits = self.decoder(self.aggregator(joined), self.pe_layer(tuple(pairs[0][1]))[None], features[-1])
        return logits + levels[0].mean() if self.extra else logits


class MoreArguments(Interactor):
    def forward(self, pixels: Tensor, pe: Tensor, tokens: Tensor, mask: Any = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(pixels, pe, tokens)


class Adapter(nn.Module):
    """A low-rank adapter that starts at zero."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        self.weight, self.bias = layer.weight, layer.bias
        self.down, self.up = nn.Linear(layer.in_features, 2, bias=False), nn.Linear(2, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


def adapt(model: OfficialStructure) -> None:
    attention = model.decoder.interactor.layers[1].cross_attn_image_to_token
    attention.q_proj = Adapter(attention.q_proj)


def tanh_activation(model: OfficialStructure) -> None:
    model.decoder.upsampler[2] = nn.GELU(approximate="tanh")


def listen(model: OfficialStructure) -> None:
    model.decoder.interactor.layers[0].norm2.register_forward_hook(lambda *_: None)


def cosine(model: OfficialStructure) -> None:
    model.decoder.interactor.layers[0].cross_attn_token_to_image.num_heads = 4


def without_norm(model: OfficialStructure) -> None:
    model.decoder.interactor.layers[0].norm4 = nn.Identity()


def wide_kernel(model: OfficialStructure) -> None:
    old = model.aggregator
    model.aggregator = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1)


def other_neck(model: OfficialStructure, **change: bool) -> None:
    become(model, type("OtherNeck", (OtherNeck,), change))


def own_forward(model: OfficialStructure) -> None:
    token = model.decoder.token
    token.forward = type(token).forward.__get__(token)  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("change", "where", "reason"),
    [
        (
            lambda m: become(m.decoder.interactor.layers[0].cross_attn_token_to_image, Dropping),
            "interaction",
            "in training mode",
        ),
        (
            lambda m: become(m.decoder.interactor.layers[1], SelfAttending),
            "interaction",
            "in evaluation mode it computes",
        ),
        (lambda m: become(m.decoder.interactor, MoreArguments), "interaction", "takes 4 arguments, not 3"),
        (adapt, "interaction", "layers.1.cross_attn_image_to_token is not four linear layers"),
        (listen, "interaction", "its part layers.0.norm2 has hooks"),
        (cosine, "interaction", "differ in width or in number of heads"),
        (
            without_norm,
            "interaction",
            "layers.0.cross_attn_image_to_token is missing, or is not followed by a LayerNorm",
        ),
        (tanh_activation, "classification", "in evaluation mode it computes something else"),
        (lambda m: become(m.decoder, Prototypes), "classification", "in evaluation mode it computes something else"),
        (wide_kernel, "neck", "no 1x1 convolution"),
        (lambda m: other_neck(m, nearest=True), "neck", "in evaluation mode it computes something else"),
        (lambda m: other_neck(m, extra=True), "neck", "it could not be tried: "),
        (own_forward, "dictionary", "its forward was replaced on the instance"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_differences_are_named(change: Callable[[OfficialStructure], None], where: str, reason: str) -> None:
    model = tiny().eval()
    change(model)
    before = model(maps())
    rest = set(WHERE) - {where}
    name = WHERE[where] or "the model itself"
    with pytest.warns(UserWarning, match="patch left alone") as warned:
        d2.patch(model)
    (message,) = (str(each.message) for each in warned if "patch left alone" in str(each.message))
    assert f"{name} ({where}: " in message and reason in message
    report = d2.patch_report(model)
    assert set(report.replaced.values()) == rest and reason in report.left_alone[WHERE[where]]
    torch.testing.assert_close(model(maps()), before, rtol=1e-4, atol=1e-5)


def test_a_part_alone_that_does_not_fit_is_an_error_that_says_why() -> None:
    interactor = tiny().decoder.interactor
    become(interactor.layers[0], SelfAttending)
    with pytest.raises(
        d2.UserError, match=r"nothing in Interactor .*looks like it: the model itself \(interaction: in eval"
    ):
        d2.patch(interactor)


def added_hook(model: OfficialStructure, seen: list[int]) -> None:
    layers = (model.decoder.interactor.norm_final_attn, model.decoder.upsampler[2], model.decoder.token.token_mlp)
    for layer in (*layers, model.linear_c[0].proj):
        layer.register_forward_hook(lambda *_: seen.append(1))


def test_what_comes_later_is_heeded() -> None:
    """Hooks on a part, or adapters in its place: the original computes, and ours again when they are gone."""
    model, seen = d2.patch(tiny().eval()), []  # type: ignore[var-annotated]
    before = model(maps())
    added_hook(model, seen)
    torch.testing.assert_close(model(maps()), before, rtol=1e-4, atol=1e-5)
    assert len(seen) == 4
    model = d2.patch(tiny().eval())
    adapt(model)
    with torch.no_grad():
        model.decoder.interactor.layers[1].cross_attn_image_to_token.q_proj.up.weight.normal_()
    assert (model(maps()) - before).norm() > 1e-3 * before.norm()
    adapted = model(maps())
    torch.testing.assert_close(d2.unpatch(model)(maps()), adapted, rtol=1e-4, atol=1e-5)
    model = d2.patch(tiny().eval())
    model.decoder.interactor.final_attn_token_to_image.v_proj = nn.Linear(32, 16)
    other = model(maps())
    assert (other - before).norm() > 1e-3 * before.norm()
    torch.testing.assert_close(d2.unpatch(model)(maps()), other, rtol=1e-4, atol=1e-5)


class OtherNames(Interactor):
    def forward(self, x: Tensor, pos: Tensor, dictionary: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x, pos, dictionary)


class OwnDecoder(Decoder):
    """Calls its parts by keyword."""

    def inference(self, maps: Tensor, pe: Tensor, tokens: Tensor) -> Tensor:  # type: ignore[override]
        tokens, pixels = self.interactor(dictionary=tokens, x=maps, pos=pe)
        upsampled = self.upsampler(pixels.transpose(1, 2).reshape(maps.shape))
        return torch.einsum("bkc,bchw->bkhw", self.output_hypernetwork_mlps(tokens), upsampled)

    def forward(self, image_embeddings: Tensor, image_pe: Tensor, image_feature: Tensor) -> Any:
        dynamic, _ = self.token(query_weights=self.feature_modulator(image_feature))
        return self.inference(tokens=dynamic, pe=image_pe, maps=image_embeddings)


class FromFeatures(OfficialStructure):
    """Its backbone returns the maps; without one they are its argument."""

    def forward(self, images: Any) -> Any:  # type: ignore[override]
        features = self.backbone(images) if hasattr(self, "backbone") else images
        sizes, levels = [each.shape[2:] for each in features], []
        for feature, project, size in zip(features, self.linear_c, sizes, strict=True):
            level = project(feature).transpose(1, 2).unflatten(2, size)
            levels.insert(0, F.interpolate(level, sizes[0], mode="bilinear"))
        fused = self.aggregator(torch.cat(levels, 1))
        return self.decoder(fused, self.pe_layer(tuple(fused.shape[2:]))[None], features[-1])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [Cropping, OtherNeck])
def test_what_a_fork_does_around_the_neck_stays(kind: type[nn.Module], training: bool) -> None:
    model = tiny().train(training)
    become(model, kind)
    before = results(model, maps())
    d2.patch(model)
    assert set(d2.patch_report(model).replaced.values()) == set(WHERE) and not d2.patch_report(model).left_alone
    assert_same(results(model, maps()), before)
    level = model.linear_c[0](maps()[0])
    assert level.device.type == "cpu" and torch.equal(level, d2.unpatch(model).linear_c[0](maps()[0]))


def test_an_interrupted_call_leaves_nothing() -> None:
    model = d2.patch(tiny().eval())
    before = model(maps())
    with pytest.raises(ValueError, match="feature map"):
        model(maps(channels=(*CHANNELS[:3], 11)))
    kept = model._fast_kept
    assert not kept.given and not kept.wanted and torch.equal(model(maps()), before)


class Passing(GivenMaps):
    def forward(self, maps: Any) -> Any:
        return maps


@pytest.mark.parametrize("backbone", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_other_names_of_arguments_and_other_ways_to_the_maps(backbone: bool, training: bool) -> None:
    model = tiny(depth=3).train(training)
    for module, kind in ((model, FromFeatures), (model.decoder, OwnDecoder), (model.decoder.interactor, OtherNames)):
        become(module, kind)
    del model.multi_scale_features
    model.backbone = Passing()
    if not backbone:
        del model.backbone
    model.decoder.token.token_mlp.weight.requires_grad_(False)

    class Losses(nn.Module):
        """As results() takes them."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: list[Tensor]) -> Any:
            output = self.model(inputs)
            return (output,) if self.training else output

    wrapped = Losses().train(training)
    before = results(wrapped, maps())
    d2.patch(wrapped)
    assert set(d2.patch_report(wrapped).replaced.values()) == set(WHERE)
    assert_same(results(wrapped, maps()), before)


def test_the_global_random_numbers_and_the_model_are_not_touched() -> None:
    model = tiny()
    model.decoder.feature_modulator.mlp1 = FeatureProjection(CHANNELS[-1], 32)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    d2.patch(model)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters()) and isinstance(model, Fast)


def test_a_model_without_memory_is_patched_before_it_has_weights() -> None:
    with torch.device("meta"):
        model = tiny()
    d2.patch(model)
    model.to_empty(device="cpu").load_state_dict(tiny().state_dict())
    torch.testing.assert_close(model.eval()(maps()), tiny().eval()(maps()), rtol=1e-4, atol=1e-5)
