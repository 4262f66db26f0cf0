"""Names of the released implementation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from d2ls_fast.errors import UserError
from d2ls_fast.models.head import D2LSHead


def tiny(**options: object) -> D2LSHead:
    return D2LSHead([4, 6], 3, **{"embed_dim": 16, "num_heads": 2, "stages": 2, **options})  # type: ignore[arg-type]


def same(a: D2LSHead, b: D2LSHead) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("prefix", ["", "net."])
def test_round_trip_with_everything_a_checkpoint_carries(prefix: str) -> None:
    source, target = tiny(), tiny()
    weights = source.to_official_state_dict()
    extra = {
        "decoder.interactor.layers.0.self_attn.q_proj.weight": torch.zeros(2),
        "decoder.interactor.layers.1.mlp.layers.0.bias": torch.zeros(2),
        "decoder.interactor.layers.1.norm3.weight": torch.zeros(2),
        "backbone.0.0.weight": torch.zeros(2),
        "something.else": torch.zeros(2),
    }
    report = target.load_official_state_dict({prefix + k: v for k, v in {**weights, **extra}.items()})
    assert same(source, target)
    assert set(report.used) == {prefix + key for key in weights}
    assert len(report.dead) == 3 and report.backbone == (prefix + "backbone.0.0.weight",)
    assert report.unexpected == (prefix + "something.else",)


def test_convolutions_keep_their_released_shape() -> None:
    weights = tiny().to_official_state_dict()
    assert weights["aggregator.weight"].shape == (16, 32, 1, 1)
    assert weights["decoder.feature_modulator.gmp_branch.1.weight"].shape == (8, 8, 1, 1)


@pytest.mark.parametrize("kind", ["lightning", "safetensors"])
def test_files(kind: str, tmp_path: Path) -> None:
    source, target = tiny(), tiny()
    weights = {k: v.contiguous().clone() for k, v in source.to_official_state_dict().items()}
    path = tmp_path / ("official.ckpt" if kind == "lightning" else "official.safetensors")
    if kind == "lightning":
        torch.save({"epoch": 3, "state_dict": {f"net.{k}": v for k, v in weights.items()}}, path)
    else:
        save_file(weights, path)
    target.load_official_state_dict(path)
    assert same(source, target)


def broken(change: str) -> dict[str, Tensor]:
    weights = tiny().to_official_state_dict()
    key = "decoder.interactor.layers.1.norm4.bias"
    if change == "missing":
        del weights[key]
    elif change == "misshapen":
        weights[key] = torch.zeros(7)
    elif change == "aggregator bias":
        weights["aggregator.bias"] = torch.zeros(16)
    else:
        weights["decoder.interactor.layers.2.norm4.bias"] = torch.zeros(16)
    return weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"'decoder\.interactor\.layers\.1\.norm4\.bias' is missing"),
        ("misshapen", r"'decoder\.interactor\.layers\.1\.norm4\.bias' has shape \[7\], this head needs \[16\]"),
        ("aggregator bias", "neck_bias=True"),
        ("one stage more", "interactor layer 2"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(change: str, message: str) -> None:
    head = tiny()
    before = {k: v.clone() for k, v in head.state_dict().items()}
    with pytest.raises(UserError, match=message):
        head.load_official_state_dict(broken(change))
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())


def test_a_fork_with_a_neck_bias() -> None:
    source, target = tiny(neck_bias=True), tiny(neck_bias=True)
    target.load_official_state_dict(source.to_official_state_dict())
    assert same(source, target)


def test_no_weights_at_all() -> None:
    with pytest.raises(UserError, match="holds no model weights"):
        tiny().load_official_state_dict({})
