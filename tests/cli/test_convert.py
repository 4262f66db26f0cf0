"""``d2ls-fast convert``."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import d2ls_fast as d2
from d2ls_fast.cli.main import app

SMALL: dict[str, Any] = {"embed_dim": 32, "stages": 2}


def weights(num_classes: int = 7, in_chans: int = 3) -> dict[str, torch.Tensor]:
    model = d2.create_model("torchvision:mobilenet_v3_large", num_classes, in_chans=in_chans, **SMALL)
    state = model.to_official_state_dict() | {"decoder.interactor.layers.0.norm1.bias": torch.zeros(32)}
    return {f"net.{key}": value for key, value in state.items()}


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Lightning checkpoint of the release's structure, with a key of a fork."""
    path = tmp_path_factory.mktemp("official") / "d2ls.ckpt"
    torch.save({"epoch": 29, "state_dict": weights() | {"loss.weight": torch.ones(7)}}, path)
    return path


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def refused(*arguments: object) -> str:
    """The one line in which a wrong call ends."""
    status, _, message = run(*arguments)
    assert status == 2, message
    assert message.startswith("error: ") and message.count("\n") == 1, message
    return message


def test_a_released_checkpoint_predicts_after_conversion(official: Path, tmp_path: Path) -> None:
    target, report = tmp_path / "out.safetensors", tmp_path / "keys.json"
    status, shown, message = run(official, target, "--dataset", "loveda", "--report", report)
    assert status == 0, message
    assert "torchvision:mobilenet_v3_large, 7 classes, 3 bands, 2 stages, width 32" in shown
    assert "1 dead" in shown and "1 unexpected and left out:\n  loss.weight\n" in shown
    keys = json.loads(report.read_text())
    assert keys["unexpected"] == ["loss.weight"] and "net.aggregator.weight" in keys["used"]
    model, card = d2.load_checkpoint(target)
    assert card.classes[3] == "water" and card.mean == [123.675, 116.28, 103.53] and card.dataset == "loveda"
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(images), d2.load_official({k: v for k, v in weights_of(official).items()})(images))


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)["state_dict"]
    return {key: value for key, value in state.items() if key.startswith("net.")}


def test_other_bands_need_their_statistics(tmp_path: Path) -> None:
    source, target = tmp_path / "five.pth", tmp_path / "out.safetensors"
    torch.save(weights(in_chans=5), source)
    assert "5 bands: give 5 numbers as mean" in refused(source, target)
    assert "--std 1,x: must be numbers" in refused(source, target, "--mean", "1,2,3,4,5", "--std", "1,x")
    status, _, message = run(source, target, "--mean", "1,2,3,4,5", "--std", "1,2,3,4,5")
    assert status == 0, message
    assert d2.load_checkpoint(target)[1].bands == [1, 2, 3, 4, 5]


def test_wrong_calls_leave_nothing_behind(official: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    assert "nothing.ckpt: no such weight file" in refused(tmp_path / "nothing.ckpt", target)
    assert "out.pth: the result is a .safetensors file" in refused(official, tmp_path / "out.pth")
    assert "did you mean loveda" in refused(official, target, "--dataset", "lovda")
    assert "'uavid' has 8 classes, the checkpoint 7" in refused(official, target, "--dataset", "uavid")
    assert "'backbone.0.0.0.weight' is missing" in refused(official, target, "--backbone", "swin_b")
    assert "did you mean convnext_base" in refused(official, target, "--backbone", "convnext_bas")
    assert "no multiple of prototypes=2" in refused(official, target, "--prototypes", "2")
    assert not list(tmp_path.iterdir())


class Malicious:
    """Unpickled by the ordinary loader, it would create the file it names."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


def hostile(kind: str, folder: Path, official: Path) -> Path:
    path = folder / f"{kind.replace(' ', '_')}.ckpt"
    if kind == "code":
        torch.save({"state_dict": {"weight": torch.zeros(1)}, "config": Malicious(folder / "ran")}, path)
    elif kind == "truncated":
        path.write_bytes(official.read_bytes()[: official.stat().st_size // 2])
    elif kind == "zip bomb":
        with zipfile.ZipFile(official) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name in plain.namelist():
                packed.writestr(name, bytes(len(plain.read(name))) if "/data/" in name else plain.read(name))
    elif kind == "empty claim":
        torch.save({"state_dict": {"net.aggregator.weight": torch.zeros(1).expand(2**30)}}, path)
    elif kind == "wrong shape":
        torch.save(weights() | {"net.aggregator.weight": torch.zeros(2)}, path)
    else:
        path.write_bytes(b"\x80\x02" + bytes(range(256)))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("code", "never run; save its state_dict() alone"),
        ("truncated", "not a readable PyTorch weight file"),
        ("zip bomb", "unpacks to"),
        ("empty claim", "'net.aggregator.weight' claims more numbers than the file holds"),
        ("wrong shape", "'aggregator.weight' has shape [2]"),
        ("noise", "not a "),
    ],
)
def test_hostile_files_end_in_one_line(kind: str, message: str, official: Path, tmp_path: Path) -> None:
    source, target = hostile(kind, tmp_path, official), tmp_path / "out.safetensors"
    line = refused(source, target)
    assert message in line and str(source) in line
    assert list(tmp_path.iterdir()) == [source]
    if kind == "code":
        assert "pathlib" in line and "weights_only=False" in line
        torch.load(source, weights_only=False)
        assert (tmp_path / "ran").exists(), "the file was not malicious after all"
