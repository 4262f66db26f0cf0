"""Recipes: what is accepted, what is refused and how."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from d2ls_fast.config import load_settings
from d2ls_fast.errors import UserError
from d2ls_fast.training.config import TrainSettings, resolve_weights

RECIPE = {
    "model": {"backbone": "resnet18"},
    "data": {"root": "images", "split": {"by": "spatial"}, "classes": [{"name": "a"}, {"name": "b"}]},
    "steps": 5,
}


def _load(tmp_path: Path, *overrides: str, **changes: object) -> TrainSettings:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | changes))
    return load_settings(TrainSettings, path, overrides)


def test_a_short_recipe_is_enough_and_overrides_reach_it(tmp_path: Path) -> None:
    settings = _load(tmp_path, "optimizer.lr=1e-4", "model.stages=2", "precision=32", "ema=0.9")
    assert (settings.optimizer.lr, settings.model.stages, settings.precision, settings.ema) == (1e-4, 2, "32", 0.9)


def test_written_settings_read_back_equal(tmp_path: Path) -> None:
    settings = _load(tmp_path, "gradient_clip=null", "ema=0.9")
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    assert load_settings(TrainSettings, path) == settings


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optimizer.learning_rate=1", "optimizer.learning_rate"),
        ("modle.stages=2", "did you mean 'model'"),
        ("model.stage=2", "did you mean 'model.stages'"),
        ("model.stages=0", "model.stages"),
        ("precision=fp8", "precision"),
        ("epochs=3", "either steps or epochs"),
        ("loss.smoothing=1", "loss.smoothing"),
        ("optimizer.lookahed.steps=3", "did you mean 'optimizer.lookahead'"),
        ("optimizer.lookahead.step=3", "did you mean 'optimizer.lookahead.steps'"),
        ("data.split.vall=0.2", "did you mean 'data.split.val'"),
        ("data.classes=[{name: a, color: '#000000'}]", "did you mean 'data.classes.0.colour'"),
        ("lr=1e-4", "did you mean 'optimizer.lr'"),
        ("backbone_lrr=1", "did you mean 'optimizer.backbone_lr'"),
        ("schedule.xyzzy=1", "known keys of 'schedule': kind, warmup, final"),
        ("xyzzy=1", "known keys: name, seed, output"),
        ("optimizer=3", "key 'optimizer' is 3: expected a group with the keys lr, backbone_lr"),
        ("optimizer.lookahead=5", "key 'optimizer.lookahead' is 5: expected a group with the keys steps, alpha"),
        ("optimizer.lr=fast", "key 'optimizer.lr' is 'fast': input should be a valid number"),
        ("devices=two", "key 'devices' is 'two'"),
        ("devices=0", "key 'devices' is 0"),
        ("strategy=dpp", "key 'strategy' is 'dpp': input should be 'auto', 'ddp' or 'fsdp'"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, override: str, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        _load(tmp_path, override)
    assert "recipe.yaml" in str(caught.value)


def test_an_override_below_a_value_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"override 'steps\.first=1': 'steps' is not a group of settings"):
        _load(tmp_path, "steps.first=1")


def test_a_recipe_without_data_or_root_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"key 'data\.root' is required"):
        _load(tmp_path, data={"split": {"by": "spatial"}, "classes": [{"name": "a"}]})


def test_no_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="either steps or epochs"):
        _load(tmp_path, steps=None)


def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *files: str) -> Path:
    folder = tmp_path / "carried_weights"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    for name in files:
        (folder / "models" / name).write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_package_weights_are_located_without_importing_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _package(tmp_path, monkeypatch, "net.pth", "notes.txt")
    assert resolve_weights("package:carried_weights") == str(folder / "models" / "net.pth")


@pytest.mark.parametrize("files", [(), ("a.pth", "b.safetensors")])
def test_a_package_without_exactly_one_weights_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...]
) -> None:
    _package(tmp_path, monkeypatch, *files)
    with pytest.raises(UserError, match=f"found {len(files)}"):
        resolve_weights("package:carried_weights")


@pytest.mark.parametrize("name", ["not_installed_here", "os.path", ""])
def test_a_missing_package_is_named(name: str) -> None:
    with pytest.raises(UserError, match="no installed Python package"):
        resolve_weights(f"package:{name}")


@pytest.mark.parametrize("value", [True, False, "weights/net.safetensors"])
def test_other_weights_are_passed_on(value: bool | str) -> None:
    assert resolve_weights(value) == value
