"""The peers: what they promise as models. How they train is tested in tests/training/test_peers.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from d2ls_fast.errors import UserError
from d2ls_fast.models.base import SegmentationModel
from d2ls_fast.models.build import PEER_OPTIONS, build_model
from d2ls_fast.models.checkpoint import ModelCard, load_checkpoint, save_checkpoint
from d2ls_fast.nn.losses import D2LSLoss

BACKBONE = "mobilenetv3_small_050"
PEERS = tuple(PEER_OPTIONS)


def build(name: str, **options: Any) -> SegmentationModel:
    torch.manual_seed(0)
    return build_model(BACKBONE, **{"num_classes": 3, "in_chans": 5, "name": name, "embed_dim": 32} | options)


def batch(size: tuple[int, int] = (50, 70), classes: int = 3, bands: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, bands, *size, generator=generator)
    target = torch.randint(0, classes, (2, *size), generator=generator)
    target[1, :9] = 255
    return images, target


@pytest.mark.parametrize("name", PEERS)
def test_logits_and_labels_have_the_size_of_the_images(name: str) -> None:
    model, (images, _) = build(name).eval(), batch()
    with torch.no_grad():
        logits = model(images)
    assert logits.shape == (2, 3, 50, 70) and logits.dtype is torch.float32 and logits.isfinite().all()
    model.train()
    labels, confidence = model.predict(images, return_confidence=True)
    assert model.training and labels.dtype is torch.uint8
    assert torch.equal(labels.long(), logits.argmax(1))
    torch.testing.assert_close(confidence, logits.softmax(1).amax(1))
    assert model.predict(images[..., :32, :33]).shape == (2, 32, 33)


@pytest.mark.parametrize("name", PEERS)
def test_every_parameter_learns_and_the_terms_add_up(name: str) -> None:
    model, (images, target) = build(name).train(), batch()
    loss = model.training_loss(D2LSLoss())
    total, terms = loss(model(images, keep_logits=False), target)
    total.backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    torch.testing.assert_close(torch.stack(list(terms.values())).sum(), total.detach())
    assert not any(term.requires_grad for term in terms.values())


@pytest.mark.parametrize("name", PEERS)
def test_a_batch_without_labels_costs_nothing(name: str) -> None:
    model, (images, target) = build(name).train(), batch()
    total, _ = model.training_loss(D2LSLoss())(model(images), torch.full_like(target, 255))
    total.backward()
    assert float(total.detach()) == 0
    assert all(p.grad is None or bool((p.grad == 0).all()) for p in model.parameters())


@pytest.mark.parametrize("name", PEERS)
def test_a_checkpoint_comes_back_by_name(name: str, tmp_path: Path) -> None:
    model, (images, _) = build(name).eval(), batch()
    card = ModelCard(model.config, list("abc"), [[0, 0, 0]] * 3, [1, 2, 3, 4, 5], [0.0] * 5, [1.0] * 5)
    save_checkpoint(tmp_path / "model.safetensors", model, card)
    loaded, read = load_checkpoint(tmp_path / "model.safetensors")
    assert read.model["name"] == name and type(loaded) is type(model)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize("name", PEERS)
def test_wrong_images_are_refused(name: str) -> None:
    model = build(name)
    with pytest.raises(UserError, match=r"\[B, 5, H, W\]"):
        model.predict(torch.zeros(1, 4, 64, 64))
    with pytest.raises(UserError, match="at least 32 x 32"):
        model.predict(torch.zeros(1, 5, 31, 64))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"name": "segfromer"}, "did you mean segformer"),
        ({"name": "upernet", "stages": 3}, "'stages' is unknown to upernet"),
        ({"name": "mask2former", "embed_dim": 40}, "divisible by 32"),
        ({"name": "prototype", "num_classes": 0}, "num_classes must be at least 1"),
        ({"name": "segformer", "backbone": "mit_b9"}, "mit_b9"),
        ({"name": "segformer", "backbone": "mit_b0", "pretrained": True}, "not downloaded"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        build_model(**{"backbone": BACKBONE, "num_classes": 2} | options)


def test_a_missing_library_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "d2ls_fast.models.peers.upernet", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs the Python package transformers; pip install 'd2ls_fast\[peers\]'"):
        build_model(BACKBONE, 2, name="upernet")


def test_upernet_refuses_to_train_on_one_image_and_can_leave_its_auxiliary_head_out() -> None:
    images, _ = batch()
    with pytest.raises(UserError, match="batch_size=2"):
        build("upernet").train()(images[:1])
    assert build("upernet").train()(images).aux_logits.shape == (2, 3, 50, 70)
    assert build("upernet", auxiliary=False).train()(images).aux_logits is None
