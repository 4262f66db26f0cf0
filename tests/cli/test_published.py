"""``train`` and ``evaluate`` by the recipes of the published data sets, on trees in their layout."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from published_trees import write_tree
from typer.testing import CliRunner

from d2ls_fast.cli.main import app
from d2ls_fast.data.published import PUBLISHED
from d2ls_fast.models.checkpoint import load_checkpoint, save_checkpoint

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = ["model.backbone=mobilenetv3_small_050", "model.pretrained=false", "model.embed_dim=32", "model.num_heads=2"]
SMALL += ["model.stages=1", "augment.crop=32", "batch_size=2", "workers=0", "steps=1", "epochs=null", "gallery=0"]


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result.exit_code, " ".join((result.stdout + result.stderr).split())


@pytest.mark.parametrize("name", ["loveda", "potsdam"])
def test_train_and_evaluate_say_which_protocol_it_is(name: str, tmp_path: Path) -> None:
    root = write_tree(name, tmp_path / "data")
    recipe = [CONFIGS / name / "honest.yaml", f"data.root={root}", f"output={tmp_path / 'run'}", *SMALL]
    if PUBLISHED[name].defaults(None).get("eval_tile"):
        recipe.append("data.eval_tile=64")
    status, shown = call("train", *recipe)
    assert status == 0, shown
    assert f"protocol honest: train = {PUBLISHED[name].title} train" in shown and "compare with models" in shown
    checkpoint = tmp_path / "run/best.safetensors"
    splits = ["val", "test"] if PUBLISHED[name].honest.test else ["val"]
    for split in splits:
        status, shown = call("evaluate", *recipe, "--checkpoint", checkpoint, "--split", split)
        assert status == 0, shown
        assert "protocol honest" in shown and "note: the checkpoint" not in shown
        result = json.loads((tmp_path / f"run/evaluation/{split}.json").read_text())
        assert result["protocol"][0].startswith("protocol honest") and sum(map(sum, result["matrix"])) > 0
        assert result["excluded_from_means"] == (["clutter"] if name in ("potsdam", "vaihingen") else [])
    model, card = load_checkpoint(checkpoint)
    unnamed = tmp_path / "unnamed.safetensors"
    save_checkpoint(unnamed, model, dataclasses.replace(card, dataset="", protocol=""))
    shown = call("evaluate", *recipe, "--checkpoint", unnamed)[1]
    assert "note: the checkpoint was trained on an unknown data set; it may have seen the images scored here" in shown
    status, shown = call("evaluate", *recipe, "protocol=paper", "--checkpoint", checkpoint)
    assert status == 2 and "best.safetensors: trained under protocol honest" in shown and "says paper" in shown
    if len(splits) == 1:
        status, shown = call("evaluate", *recipe, "--checkpoint", checkpoint, "--split", "test")
        assert status == 2 and PUBLISHED[name].no_test in shown
