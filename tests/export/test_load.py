"""Files that load_exported must refuse, in one line and without running anything that is in them."""

from __future__ import annotations

import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import d2ls_fast as d2
from d2ls_fast.errors import UserError
from d2ls_fast.export.export import export_model
from d2ls_fast.models.checkpoint import ModelCard
from d2ls_fast.models.model import D2LS

Change = Callable[[dict[str, bytes], str], None]


@pytest.fixture(scope="module")
def program(tiny_model: D2LS, card: ModelCard, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "tiny.pt2"
    return export_model(tiny_model, card, path, "exported-program", shape=(1, 64, 64)).path


def rewritten(program: Path, target: Path, change: Callable[[dict[str, bytes]], None], packing: int = 0) -> Path:
    """A copy of an archive in which ``change`` has changed some members."""
    with zipfile.ZipFile(program) as source:
        members = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(f"tiny/{name}", content)
    return target


class Malicious:
    """Unpickled without restriction, it would create the file it names."""

    def __init__(self, victim: str) -> None:
        self.victim = Path(victim)

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


def in_graph(edit: Callable[[dict[str, Any], str], None]) -> Change:
    def change(members: dict[str, bytes], victim: str) -> None:
        program = json.loads(members["models/model.json"])
        edit(program, victim)
        members["models/model.json"] = json.dumps(program).encode()

    return change


def pickled_inputs(members: dict[str, bytes], victim: str) -> None:
    buffer = io.BytesIO()
    torch.save(Malicious(victim), buffer)
    members["data/sample_inputs/model.pt"] = buffer.getvalue()


def pickled_weight(members: dict[str, bytes], victim: str) -> None:
    name = "data/weights/model_weights_config.json"
    config = json.loads(members[name])
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    buffer = io.BytesIO()
    torch.save(Malicious(victim), buffer)
    members[name], members[f"data/weights/{first['path_name']}"] = json.dumps(config).encode(), buffer.getvalue()


def pickled_object(members: dict[str, bytes], victim: str) -> None:
    members["data/constants/opaque_obj_0"] = pickle.dumps(Malicious(victim))


def native_code(members: dict[str, bytes], victim: str) -> None:
    members["data/aotinductor/model/x.wrapper.so"] = b"\x7fELF"


@in_graph
def call(program: dict[str, Any], victim: str) -> None:
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"


@in_graph
def file_operator(program: dict[str, Any], victim: str) -> None:
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


@in_graph
def placeholder(program: dict[str, Any], victim: str) -> None:
    graph = program["graph_module"]["graph"]
    graph["inputs"][0]["as_tensor"]["name"] = f"x=open({victim!r}, 'w')"


@in_graph
def size_expression(program: dict[str, Any], victim: str) -> None:
    values = next(iter(program["graph_module"]["graph"]["tensor_values"].values()))
    values["sizes"][0] = {"as_expr": {"expr_str": f"open({victim!r}, 'w')", "hint": None}}


@in_graph
def guard(program: dict[str, Any], victim: str) -> None:
    program["guards_code"] = [f"L['images'].size().__class__.__base__ == open({victim!r}, 'w')"]


@in_graph
def output_tree(program: dict[str, Any], victim: str) -> None:
    tree = {"type": "collections.defaultdict", "context": "[]", "children_spec": []}
    program["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps([1, tree])


HOSTILE: list[Change] = [
    pickled_inputs,
    pickled_weight,
    pickled_object,
    native_code,
    call,
    file_operator,
    placeholder,
    size_expression,
    guard,
    output_tree,
]


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: change.__name__)
def test_what_could_run_code_is_refused(change: Change, program: Path, tmp_path: Path) -> None:
    victim = tmp_path / "ran"
    path = rewritten(program, tmp_path / "tiny.pt2", lambda members: change(members, str(victim)))
    with pytest.raises(UserError, match="trust=True") as caught:
        d2.load_exported(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not victim.exists()


def test_pickles_do_run_where_they_are_trusted(program: Path, tmp_path: Path) -> None:
    """The attack is real: PyTorch's own loader falls for it."""
    victim = tmp_path / "ran"
    path = rewritten(program, tmp_path / "tiny.pt2", lambda members: pickled_weight(members, str(victim)))
    with pytest.raises(UserError, match="cannot open this program"):
        d2.load_exported(path, trust=True)
    assert victim.exists()


def test_packed_and_doubled_members_are_refused(program: Path, tmp_path: Path) -> None:
    path = rewritten(program, tmp_path / "packed.pt2", lambda members: None, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="trust=True"):
        d2.load_exported(path)
    path = rewritten(program, tmp_path / "double.pt2", lambda members: None)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("tiny/models/model.json", b"{}")
    with pytest.raises(UserError, match="trust=True"):
        d2.load_exported(path)


def test_wrong_files_end_in_one_line(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = program.read_bytes()
    foreign = rewritten(program, tmp_path / "foreign.pt2", lambda members: members.pop("extra/d2ls_fast") and None)
    edited = rewritten(program, tmp_path / "edited.pt2", lambda members: members.update({"extra/d2ls_fast": b"{}"}))
    files = {
        "cut.pt2": content[: len(content) // 2],
        "text.pt2": b"not a zip archive",
        "empty.pt2": b"",
        "text.onnx": b"not a protobuf",
        "empty.onnx": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    messages = {
        tmp_path / "missing.pt2": "no such file",
        tmp_path / "cut.pt2": "not a readable .pt2 file",
        tmp_path / "text.pt2": "not a readable .pt2 file",
        tmp_path / "empty.pt2": "not a readable .pt2 file",
        tmp_path / "text.onnx": "onnxruntime cannot open this file",
        tmp_path / "empty.onnx": "onnxruntime cannot open this file",
        foreign: "not exported by this package",
        edited: "its card cannot be read",
    }
    for path, message in messages.items():
        with pytest.raises(UserError, match=message) as caught:
            d2.load_exported(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="pip install onnxruntime"):
        d2.load_exported(tmp_path / "text.onnx")


def test_a_fixed_file_fills_up_its_batch(program: Path, tiny_model: D2LS, card: ModelCard) -> None:
    exported = d2.load_exported(program)
    images = np.random.default_rng(1).normal(450, 100, (3, 2, 60, 64)).astype(np.float32)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (card.mean, card.std))
    with torch.no_grad():
        wanted = tiny_model(torch.from_numpy((images - mean) / std)).numpy()
    np.testing.assert_allclose(exported.logits(images), wanted, atol=1e-4 * np.abs(wanted).max())
