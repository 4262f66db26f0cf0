"""Backbones: families, sizes, bands, local weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from d2ls_fast.errors import UserError
from d2ls_fast.models.backbones import Backbone

# The smallest members with a name of their own.
FAMILIES = {
    "convnext_atto": [40, 80, 160, 320],
    "swin_tiny_patch4_window7_224": [96, 192, 384, 768],
    "swinv2_tiny_window8_256": [96, 192, 384, 768],
    "resnet18": [64, 128, 256, 512],
    "mobilenetv3_small_050": [8, 16, 24, 288],
    "tf_efficientnet_lite0": [24, 40, 112, 320],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_four_maps_at_any_size(name: str) -> None:
    backbone = Backbone(name, in_chans=2).eval()
    assert backbone.channels == FAMILIES[name]
    for height, width in ((32, 32), (64, 96)):
        with torch.no_grad():
            maps = backbone(torch.randn(1, 2, height, width))
        wanted = [(1, c, height // s, width // s) for c, s in zip(FAMILIES[name], (4, 8, 16, 32), strict=True)]
        assert [tuple(m.shape) for m in maps] == wanted
        assert all(m.isfinite().all() for m in maps)


def classifier_weights(name: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False).state_dict()


def maps_of(name: str, state: dict[str, Tensor], images: Tensor) -> list[Tensor]:
    """What the weights give through timm itself."""
    net = timm.create_model(
        name, features_only=True, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(state)}
    )
    maps: list[Tensor] = net.eval()(images)
    return maps[-4:]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["convnext_atto", "resnet18", "mobilenetv3_small_050"])
def test_local_classifier_weights(name: str, suffix: str, tmp_path: Path) -> None:
    state, path = classifier_weights(name), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 1}, path)
    else:
        save_file(state, path)
    backbone, images = Backbone(name, pretrained=path).eval(), torch.randn(1, 3, 32, 32)
    for got, wanted in zip(backbone(images), maps_of(name, state, images), strict=True):
        torch.testing.assert_close(got, wanted)
    assert "state_dict" not in backbone.net.pretrained_cfg


def test_other_key_names_in_the_same_order(tmp_path: Path) -> None:
    name = "tf_efficientnet_lite0"
    state = classifier_weights(name)
    path = tmp_path / "lite0.pth"
    torch.save({f"layer{i}.value": v for i, v in enumerate(state.values())}, path)
    backbone, images = Backbone(name, pretrained=path).eval(), torch.randn(1, 3, 32, 32)
    for got, wanted in zip(backbone(images), maps_of(name, state, images), strict=True):
        torch.testing.assert_close(got, wanted)
    assert backbone.input_mean == [127.0] * 3 and backbone.input_std == [128.0] * 3


def test_other_key_names_with_one_tensor_less_are_refused(tmp_path: Path) -> None:
    state = classifier_weights("tf_efficientnet_lite0")
    path = tmp_path / "lite0.pth"
    torch.save({f"layer{i}.value": v for i, v in enumerate(list(state.values())[:-1])}, path)
    with pytest.raises(UserError, match=r"lite0\.pth: holds no 'conv_stem\.weight'"):
        Backbone("tf_efficientnet_lite0", pretrained=path)


def test_rgb_weights_spread_over_more_bands(tmp_path: Path) -> None:
    state, path = classifier_weights("resnet18"), tmp_path / "resnet18.safetensors"
    save_file(state, path)
    weight = Backbone("resnet18", in_chans=5, pretrained=path).net.conv1.weight
    assert weight.shape == (64, 5, 7, 7)
    # timm repeats R, G, B, R, G and keeps the sum of the response to a grey image.
    torch.testing.assert_close(weight[:, 3], state["conv1.weight"][:, 0] * 3 / 5)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet18.safetensors"
    save_file(classifier_weights("resnet18"), path)
    with pytest.raises(UserError, match=r"resnet18\.safetensors: .*'convnext_atto'"):
        Backbone("convnext_atto", pretrained=path)
    # the same names with other shapes
    with pytest.raises(UserError, match=r"resnet18\.safetensors: .*'resnet26'|resnet18\.safetensors: .*'resnet34'"):
        Backbone("resnet34", pretrained=path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnett18", "did you mean resnet18"),
        ("vit_tiny_patch16_224", r"strides \[16, 16, 16\]; D2LS needs 4, 8, 16 and 32"),
        ("maxvit_tiny_tf_224", "images of one size only"),
    ],
)
def test_unsuitable_backbones_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Backbone(name)


def test_missing_weights_and_no_bands() -> None:
    with pytest.raises(UserError, match=r"nowhere\.pth: no such weight file"):
        Backbone("resnet18", pretrained="nowhere.pth")
    with pytest.raises(UserError, match="in_chans must be at least 1"):
        Backbone("resnet18", in_chans=0)


def test_a_failed_download_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no connection")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(UserError, match=r"'resnet18': .*\(no connection\); set pretrained to false or to a local"):
        Backbone("resnet18", pretrained=True)
