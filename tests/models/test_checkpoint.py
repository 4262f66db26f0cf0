"""Checkpoints: round trip, damage, foreign files, and files that try to run code."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from d2ls_fast.errors import UserError
from d2ls_fast.models.backbones import Backbone
from d2ls_fast.models.checkpoint import ModelCard, load_checkpoint, save_checkpoint
from d2ls_fast.models.head import D2LSHead
from d2ls_fast.models.model import D2LS, create_model


def trained(classes: int = 3) -> tuple[D2LS, ModelCard]:
    torch.manual_seed(0)
    model = create_model("mobilenetv3_small_050", classes, in_chans=2, stages=1, embed_dim=32, num_heads=2)
    card = ModelCard(
        model=model.config,
        classes=[f"class {i}" for i in range(classes)],
        palette=[[i, 2 * i, 255] for i in range(classes)],
        bands=[4, 2],
        mean=[100.5, 3000.0],
        std=[10.0, 700.0],
        scale=0.5,
        scores={"mean_iou": 0.5},
    )
    return model.eval(), card


def write(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, *trained())
    return path


def test_round_trip(tmp_path: Path) -> None:
    model, card = trained()
    path = write(tmp_path)
    loaded, loaded_card = load_checkpoint(path)
    assert loaded_card == card and not loaded.training
    images = torch.randn(1, 2, 40, 40)
    assert torch.equal(loaded(images), model(images))
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("d2ls_fast.models.checkpoint.save_file", fail)
    with pytest.raises(UserError, match="No space left"):
        save_checkpoint(path, *trained())
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model.safetensors"]


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/model\.safetensors: cannot be written"):
        save_checkpoint(tmp_path / "file" / "model.safetensors", *trained())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["one"]}, "classes has 1 items where the model has 3"),
        ({"mean": [1.0]}, "mean has 1 items where the model has 2"),
        ({"std": [1.0, 0.0]}, "std, scale and crop must be positive"),
        ({"palette": [[0, 0, 0]] * 2 + [[0, 0, 256]]}, "RGB triples"),
        ({"model": {"num_classes": 3, "in_chans": 2}}, "not the configuration of the model"),
    ],
)
def test_a_card_that_contradicts_the_model(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    model, card = trained()
    with pytest.raises(UserError, match=message):
        save_checkpoint(tmp_path / "m.safetensors", model, dataclasses.replace(card, **change))
    assert os.listdir(tmp_path) == []


def damage(path: Path, kind: str) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "foreign":
        save_file(tensors, path)
    elif kind == "no card":
        save_file(tensors, path, {**metadata, "card": "[1]"})
    elif kind == "weight missing":
        tensors.pop("head.dictionary.entries")
        save_file(tensors, path, metadata)
    elif kind == "weight of another shape":
        save_file({**tensors, "head.dictionary.entries": torch.zeros(9, 32)}, path, metadata)
    elif kind == "weight too many":
        save_file({**tensors, "extra": torch.zeros(1)}, path, metadata)
    elif kind == "unknown backbone":
        card = json.loads(metadata["card"])
        card["model"]["backbone"] = "convnet_of_the_future"
        save_file(tensors, path, {**metadata, "card": json.dumps(card)})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "not a readable checkpoint"),
        ("text", "not a readable checkpoint"),
        ("foreign", "not a checkpoint of this package"),
        ("no card", "card cannot be read"),
        ("weight missing", "'head.dictionary.entries' is missing"),
        ("weight of another shape", r"'head.dictionary.entries' has shape \[9, 32\]"),
        ("weight too many", "'extra'"),
        ("unknown backbone", "no model this version can build"),
    ],
)
def test_damaged_and_foreign_files(kind: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path)
    damage(path, kind)
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_missing_file() -> None:
    with pytest.raises(UserError, match=r"nothing\.safetensors: no such checkpoint"):
        load_checkpoint("nothing.safetensors")


class Malicious:
    """Unpickled by the ordinary loader, it would create the file it names."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("name", ["evil.pth", "evil.safetensors"])
def test_a_malicious_pickle_does_not_run(name: str, tmp_path: Path) -> None:
    victim, path = tmp_path / "ran", tmp_path / name
    torch.save({"state_dict": {"weight": torch.zeros(1), "bomb": Malicious(victim)}}, path)
    with pytest.raises(UserError):
        load_checkpoint(path)
    with pytest.raises(UserError):
        Backbone("mobilenetv3_small_050", pretrained=path)
    with pytest.raises(UserError):
        D2LSHead([4], 2, embed_dim=16, num_heads=2).load_official_state_dict(path)
    assert not victim.exists()
    torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert victim.exists(), "the file was not malicious after all"
