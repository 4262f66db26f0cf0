"""Backbones of the released implementation, and whole checkpoints of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import get_model

import d2ls_fast as d2
from d2ls_fast.errors import UserError
from d2ls_fast.models.create_backbone import create_backbone
from d2ls_fast.models.load_official import convert_official
from d2ls_fast.models.torchvision_backbones import ARCHITECTURES, TorchvisionBackbone

STRIDES = (4, 8, 16, 32)
FEATURES_ALONE = ("mobilenet_v3_large", "efficientnet_v2_m")
TAPS = {
    "resnet101": "4 5 6 7",
    "mobilenet_v3_large": "3 6 12 16",
    "efficientnet_v2_m": "2 3 5 8",
}
TINY: dict[str, Any] = {"embed_dim": 32, "num_heads": 2, "stages": 2}


@pytest.fixture(autouse=True)
def _quick_initialisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A truncated normal takes most of the seconds that the large networks need; every weight is redrawn anyway."""
    for name in ("trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "normal_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


def numbered(name: str) -> nn.Sequential:
    """A torchvision network as the release holds it: the children before the classifier, by number."""
    torch.manual_seed(0)
    model = get_model(name, weights=None).eval()
    net = model.features if name in FEATURES_ALONE else nn.Sequential(*list(model.children())[:-1])
    with torch.no_grad():
        for key, tensor in net.state_dict().items():
            if "running_var" in key:
                tensor.uniform_(0.5, 1.5)
            elif tensor.dim() > 1 and tensor.is_floating_point() and "coords_table" not in key:
                tensor.normal_(std=tensor[0].numel() ** -0.5)
            elif tensor.is_floating_point():
                tensor.uniform_(0.3, 0.9)
    return net


def tapped(name: str, net: nn.Sequential, images: Tensor) -> list[Tensor]:
    """The maps that the release hooks."""
    maps: list[Tensor] = []
    for tap in TAPS.get(name, "0.1 0.3 0.5 0.7").split():
        net.get_submodule(tap).register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    with torch.no_grad():
        net(images)
    return [each.permute(0, 3, 1, 2) for each in maps] if name.startswith("swin") else maps


def whole(name: str, net: nn.Sequential, prefix: str = "", **head: Any) -> dict[str, Tensor]:
    """An official-structured checkpoint: ``net``, a head, and dead weights."""
    channels = list(ARCHITECTURES[name].channels)
    state = {f"backbone.{key}": value for key, value in net.state_dict().items()}
    weights = d2.D2LSHead(channels, **{"num_classes": 3, **TINY, **head}).to_official_state_dict()
    state |= {key: torch.randn_like(value) / 8 for key, value in weights.items()}
    state["decoder.interactor.layers.0.norm1.weight"] = torch.ones(32)
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_features_and_round_trip(name: str) -> None:
    net, images = numbered(name), torch.randn(1, 3, 64, 96)
    state = whole(name, net)
    model, report = convert_official(state, num_heads=2)
    assert model.config["backbone"] == f"torchvision:{name}" and not model.training
    with torch.no_grad():
        maps = model.backbone(images)
    channels = model.backbone.channels
    for got, wanted, stride, width in zip(maps, tapped(name, net, images), STRIDES, channels, strict=True):
        assert got.shape == (1, width, 64 // stride, 96 // stride)
        assert wanted.std() > 0
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    dead = {"decoder.interactor.layers.0.norm1.weight"}
    if name.startswith("swin"):
        dead |= {"backbone.1.weight", "backbone.1.bias"}
    assert set(report.dead) == dead and not report.unexpected and not report.backbone
    assert set(report.used) == set(state) - dead
    back = model.to_official_state_dict()
    assert set(back) == set(report.used)
    assert all(torch.equal(back[key], state[key]) and back[key].dtype == state[key].dtype for key in back)


def test_the_golden_head_in_a_whole_checkpoint_round_trips_bit_for_bit(tmp_path: Path) -> None:
    golden = load_file(Path(__file__).parents[1] / "golden/official_head_k7_l3.safetensors")
    head = {key.removeprefix("state."): value for key, value in golden.items() if key.startswith("state.")}
    net = numbered("convnext_base")
    state = {f"net.backbone.{key}": value for key, value in net.state_dict().items()}
    state |= {f"net.{key}": value for key, value in head.items()}
    state["net.decoder.interactor.layers.2.self_attn.q_proj.weight"] = torch.randn(256, 256)
    path = tmp_path / "official.ckpt"
    torch.save({"epoch": 29, "state_dict": state, "lr_schedulers": [{"last_lr": [1e-6]}]}, path)
    model = d2.load_official(path, backbone="convnext_base")
    assert (model.config["num_classes"], model.config["stages"], model.config["embed_dim"]) == (7, 3, 256)
    back = model.to_official_state_dict(like=path)
    assert list(back) == list(state)
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_everything_shapes_tell() -> None:
    net = numbered("mobilenet_v3_large")
    options = {"num_classes": 5, "embed_dim": 48, "stages": 4, "query_ratio": 3, "neck_bias": True, "prototypes": 2}
    state = whole("mobilenet_v3_large", net, "net.", **options)
    stem = "net.backbone.0.0.weight"
    state[stem] = torch.randn(16, 5, 3, 3)
    model = d2.load_official(state, num_heads=2, prototypes=2, prototype_reduction="max")
    assert {key: model.config[key] for key in options} == options
    assert model.config["in_chans"] == 5 and torch.equal(model.to_official_state_dict()[stem[4:]], state[stem])
    assert model.predict(torch.randn(1, 5, 32, 32)).max() < 5


def test_training_goes_on() -> None:
    model = d2.load_official(whole("mobilenet_v3_large", numbered("mobilenet_v3_large")), num_heads=2).train()
    model(torch.randn(2, 3, 64, 64)).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone.4.block.1.0.weight": None}, r"'backbone\.4\.block\.1\.0\.weight' is missing"),
        (
            {"backbone.4.block.1.0.weight": torch.ones(3)},
            r"'backbone\.4\.block\.1\.0\.weight' has shape \[3\], .* needs",
        ),
        ({"backbone.0.0.weight": None}, r"'backbone\.0\.0\.weight' is missing"),
        ({"backbone.0.0.weight": torch.ones(3)}, r"'backbone\.0\.0\.weight' has shape \[3\]"),
        ({"aggregator.weight": None}, r"'aggregator\.weight' is missing"),
        ({"decoder.token.basic_queries.weight": None}, r"basic_queries\.weight' is missing"),
        (
            {"decoder.token.basic_queries.weight": torch.ones(1, 33)},
            "128 rows, D2LS needs a multiple of its width 33",
        ),
        # A width whose matrices would fill the memory, were they asked for before the other keys are looked at.
        (
            {
                "decoder.token.basic_queries.weight": torch.ones(3, 2**20),
                "decoder.token.token_mlp.weight": torch.ones(1, 1).expand(2**20, 2**20),
            },
            r"has shape \[\d+, \d+\], this head needs \[1048576, ",
        ),
        ({"decoder.token.token_mlp.weight": torch.ones(3)}, r"token_mlp\.weight' has shape \[3\], D2LS needs a matrix"),
        ({"decoder.output_head.weight": torch.ones(2, 3)}, "output_head"),
    ],
)
def test_misfits_name_the_key(change: dict[str, Tensor | None], message: str) -> None:
    state: dict[str, Any] = whole("mobilenet_v3_large", numbered("mobilenet_v3_large")) | change
    with pytest.raises(UserError, match=message):
        d2.load_official({key: value for key, value in state.items() if value is not None}, num_heads=2)


def test_wrong_calls() -> None:
    state = whole("mobilenet_v3_large", numbered("mobilenet_v3_large"))
    with pytest.raises(UserError, match="did you mean mobilenet_v3_large"):
        d2.load_official(state, backbone="mobilenetv3_large")
    with pytest.raises(UserError, match="3 entries, no multiple of prototypes=2"):
        d2.load_official(state, num_heads=2, prototypes=2)
    with pytest.raises(UserError, match="no backbone of the D2LS release fits"):
        d2.load_official({key: value for key, value in state.items() if not key.startswith("backbone.")})
    with pytest.warns(UserWarning, match=r"1 unexpected keys were left out: loss\.weight"):
        model = d2.load_official(state | {"loss.weight": torch.ones(1)}, num_heads=2)
    with pytest.raises(UserError, match="missing or misshapen"):
        model.to_official_state_dict(like={"aggregator.weight": torch.ones(1)})
    with pytest.raises(UserError, match="no place in the D2LS release"):
        d2.create_model("resnet18", 3, **TINY).to_official_state_dict()


def test_local_weights_with_torchvisions_names(tmp_path: Path) -> None:
    source = get_model("mobilenet_v3_large", weights=None)
    source.features.load_state_dict(numbered("mobilenet_v3_large").state_dict())
    path = tmp_path / "weights.safetensors"
    save_file({k: v for k, v in source.state_dict().items() if k.startswith("features")}, path)
    name, key = "torchvision:mobilenet_v3_large", "features.0.0.weight"
    same, wide = create_backbone(name, 3, path), create_backbone(name, 6, path)
    assert all(torch.equal(value, source.state_dict()[each]) for each, value in same.net.state_dict().items())
    stem = source.state_dict()[key]
    torch.testing.assert_close(wide.net.state_dict()[key], stem.repeat(1, 2, 1, 1) / 2)
    with pytest.raises(UserError, match=r"weights\.safetensors: key 'conv1\.weight' is missing"):
        TorchvisionBackbone("resnet101", pretrained=path)
    with pytest.raises(UserError, match="in_chans must be at least 1"):
        create_backbone(name, 0)
