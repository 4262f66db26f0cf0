"""Files in each format: they agree with their model at every size promised, or they are not there."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import d2ls_fast as d2
from d2ls_fast.errors import UserError
from d2ls_fast.export import agreement
from d2ls_fast.export.export import Report, export_model
from d2ls_fast.models.checkpoint import ModelCard
from d2ls_fast.models.model import D2LS

SAMPLE = Path(__file__).parents[2] / "examples/sample/landsat8-cloud/images/landsat8_r0_c0.tif"


@pytest.fixture(scope="module")
def program(tiny_model: D2LS, card: ModelCard, tmp_path_factory: pytest.TempPathFactory) -> Report:
    path = tmp_path_factory.mktemp("program") / "tiny.pt2"
    return export_model(tiny_model, card, path, "exported-program", check=[SAMPLE])


@pytest.fixture(scope="module")
def onnx_file(tiny_model: D2LS, card: ModelCard, tmp_path_factory: pytest.TempPathFactory) -> Report:
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    return export_model(tiny_model, card, path, "onnx", check=[SAMPLE])


def raw_images(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).integers(0, 1000, shape, dtype=np.uint16)


def expected(model: D2LS, card: ModelCard, images: np.ndarray[Any, Any]) -> torch.Tensor:
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (card.mean, card.std))
    with torch.no_grad():
        return model(torch.from_numpy((images.astype(np.float32) - mean) / std))


def agrees(path: Path, model: D2LS, card: ModelCard, trust: bool = False) -> None:
    exported = d2.load_exported(path, trust=trust)
    assert exported.card == card
    for shape in ((1, 2, 64, 96), (3, 2, 70, 101), (5, 2, 33, 129)):
        images = raw_images(*shape)
        wanted = expected(model, card, images)
        logits, labels = exported.logits(images), exported.predict(images)
        np.testing.assert_allclose(logits, wanted.numpy(), atol=1e-4 * wanted.abs().max().item())
        assert labels.dtype == np.uint8 and labels.shape == (shape[0], *shape[2:])
        close = wanted.topk(2, 1).values.diff(dim=1)[:, 0].abs() < 1e-4
        assert bool(((torch.from_numpy(labels) == wanted.argmax(1)) | close).all())
        one = exported.predict(torch.from_numpy(images[0].astype(np.int32)))
        assert isinstance(one, torch.Tensor) and np.array_equal(one.numpy(), labels[0])


def test_a_program_agrees_at_other_sizes_and_needs_no_other_operators(
    program: Report, tiny_model: D2LS, card: ModelCard
) -> None:
    agrees(program.path, tiny_model, card)
    assert program.own_operators == [] and program.manifest.operators == "plain"
    assert program.agreement.difference <= 1e-4 and SAMPLE.name in program.agreement.compared
    assert list(program.path.parent.iterdir()) == [program.path]
    content = program.path.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in content and b"d2ls_fast/models" not in content


def test_onnx_agrees_and_names_its_opset(onnx_file: Report, tiny_model: D2LS, card: ModelCard) -> None:
    agrees(onnx_file.path, tiny_model, card)
    model = onnx.load(onnx_file.path)
    opsets = {each.domain: each.version for each in model.opset_import}
    assert opsets == {"": onnx_file.manifest.opset}
    held = {each.key: each.value for each in model.metadata_props}
    assert json.loads(held["d2ls_fast"])["card"]["classes"] == card.classes
    assert str(Path(__file__).parents[2]).encode() not in onnx_file.path.read_bytes()


def test_a_fixed_fused_package_is_native_code_and_agrees(tiny_model: D2LS, card: ModelCard, tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt2"
    report = export_model(tiny_model, card, path, "aoti", shape=(2, 64, 64))
    assert report.own_operators == ["attend", "classify", "fuse_pyramid", "refine_attend"]
    with pytest.raises(UserError, match=r"tiny.pt2: holds native code.*trust=True"):
        d2.load_exported(path)
    exported = d2.load_exported(path, trust=True)
    images = raw_images(3, 2, 50, 64)  # of other numbers than the file's: filled up, padded and cut again
    wanted = expected(tiny_model, card, images)
    np.testing.assert_allclose(exported.logits(images), wanted.numpy(), atol=1e-4 * wanted.abs().max().item())
    with pytest.raises(UserError, match=r"are 64 x 65 pixels.*batch 2, 64 x 64"):
        exported.predict(raw_images(1, 2, 64, 65))


def test_images_that_the_file_does_not_take(program: Report) -> None:
    exported = d2.load_exported(program.path)
    for images in (raw_images(3, 64, 64), raw_images(64, 64), np.zeros((2, 64, 64), complex)):
        with pytest.raises(UserError, match=r"must be real numbers \[B, 2, h, w\]"):
            exported.predict(images)
    with pytest.raises(UserError, match=r"32 x 64 pixels to the model.*sides from 64"):
        exported.predict(raw_images(2, 32, 64))


def test_missing_pixels_and_scale_are_as_in_training(program: Report, tiny_model: D2LS, card: ModelCard) -> None:
    exported = d2.load_exported(program.path)
    holed = raw_images(2, 64, 64).astype(np.float32)
    filled = holed.copy()
    holed[0, 3, 4], filled[:, 3, 4] = np.nan, card.mean
    np.testing.assert_array_equal(exported.logits(holed), exported.logits(filled))
    doubled = type(exported)(exported._run, replace(exported.manifest, card=replace(card, scale=2.0)))
    assert doubled.logits(filled).shape == (3, 128, 128) and doubled.predict(filled).shape == (64, 64)


def test_a_file_that_differs_is_not_written(
    tiny_model: D2LS, card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "TOLERANCE", 1e-12)
    with pytest.raises(UserError, match=r"differs from the original by .* more than 1.0e-12; nothing was written"):
        export_model(tiny_model, card, tmp_path / "tiny.pt2", "exported-program", shape=(1, 64, 64))
    assert not list(tmp_path.iterdir())


def test_bfloat16_keeps_to_the_error_of_bfloat16(tiny_model: D2LS, card: ModelCard, tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt2"
    report = export_model(tiny_model, card, path, "exported-program", shape=(1, 64, 64), precision="bf16")
    assert 1e-4 < report.agreement.difference <= report.agreement.allowed < 0.1


def test_options_that_do_not_go_together(
    tiny_model: D2LS, card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str, *arguments: Any, **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            export_model(tiny_model, card, tmp_path / name, *arguments, **options)
        assert not list(tmp_path.iterdir())
        return str(caught.value)

    assert "ends in .onnx" in refused("tiny.pt2", "onnx")
    assert "plain operators in fp32" in refused("tiny.onnx", "onnx", operators="fused")
    assert "multiples of 32" in refused("tiny.pt2", "exported-program", shape=(1, 64, 70))
    monkeypatch.setattr(sys.modules["d2ls_fast.backends"], "backends", lambda: {"cpu": "was not built"})
    assert "fused: was not built; use --operators plain" in refused("tiny.pt2", "aoti", operators="fused")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install onnxscript" in refused("tiny.onnx", "onnx")
    monkeypatch.setitem(tiny_model.config, "backbone", "swin_b")
    assert "d2ls on swin_b: a Swin backbone" in refused("tiny.pt2", "exported-program")


def test_no_compiler_is_one_line(
    tiny_model: D2LS, card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config as inductor
    from torch._inductor import cpp_builder

    monkeypatch.setattr(inductor.cpp, "cxx", ("/nonexistent/g++",))
    monkeypatch.setattr(cpp_builder, "cpp_compiler_search", cpp_builder.cpp_compiler_search.__wrapped__)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        export_model(tiny_model, card, tmp_path / "tiny.pt2", "aoti", "plain", shape=(1, 64, 64))
    assert not list(tmp_path.iterdir())
