"""Every example runs to its end in an empty folder, on the carried sample, and what it promises is there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import rasterio
from forked_runs import run_forked, run_script
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def ran(tmp_path: Path) -> Callable[[str], str]:
    """``ran(name)``: runs the example in ``tmp_path`` and gives what it printed."""

    def run(name: str) -> str:
        printed = tmp_path / "printed.txt"
        assert run_forked(run_script, EXAMPLES / f"{name}.py", tmp_path, printed) == [0], printed.read_text()
        return printed.read_text()

    return run


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, (pattern, text)
    return float(found.group(1))


def test_layers_in_your_model(ran: Callable[[str], str], tmp_path: Path) -> None:
    printed = ran("layers_in_your_model")
    assert number(r"held-out mean IoU ([\d.]+)%", printed) > 45  # 22 if all is called clear
    assert number(r"largest difference from the definition (\S+)", printed) < 1e-4
    assert number(r"compiled, largest difference (\S+)", printed) < 1e-4
    assert number(r"largest difference after patch\(\) (\S+)", printed) < 1e-4
    assert "patched: decoder.interactor (interaction)" in printed
    assert "attend: context [1, 8, 64], log-sum-exp [1, 8], gradient [1, 8, 64]" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["printed.txt"]


def test_train_and_map_your_imagery(ran: Callable[[str], str], tmp_path: Path) -> None:
    printed = ran("train_and_map_your_imagery")
    folder = tmp_path / "runs/your-imagery"
    assert "no fault found" in printed
    assert number(r"held-out mean IoU ([\d.]+)%", printed) > 30
    with (
        rasterio.open(EXAMPLES / "sample/sentinel2-scene.tif") as scene,
        rasterio.open(folder / "map/sentinel2-scene_labels.tif") as labels,
    ):
        assert (labels.crs, labels.transform, labels.shape) == (scene.crs, scene.transform, scene.shape)
        assert labels.read(1).max() < 3
    # No pixel is lost on the way to the areas: 644 x 649 of 0.09 ha.
    areas = re.search(r"hectares: (.*)", printed)
    assert areas and sum(map(float, re.findall(r"\d+", areas.group(1)))) == pytest.approx(644 * 649 * 0.09, abs=2)
    for picture in ("look.png", "check/contact_sheet.png", "map/sentinel2-scene_overlay.png"):
        assert min(Image.open(folder / picture).size) > 300
    assert (folder / "run/report.html").is_file()


def test_reproduce_and_ablate(ran: Callable[[str], str], tmp_path: Path) -> None:
    printed = ran("reproduce_and_ablate")
    assert "torchvision:mobilenet_v3_large, 7 classes, 3 stages" in printed
    assert number(r"largest difference of the logits (\S+),", printed) < 1e-4
    assert "back to the release, all keys equal: True" in printed
    assert re.search(r"loss\.compat +paper release +honest corrected", printed)
    rows = json.loads((tmp_path / "runs/research/ablation/ablation.json").read_text())["rows"]
    assert [row["key"] for row in rows] == ["full", "static"]
    assert "= cross_entropy" in printed and "+ intermediate" in printed


def test_benchmark_on_your_machine(ran: Callable[[str], str], tmp_path: Path) -> None:
    printed = ran("benchmark_on_your_machine")
    rows = json.loads((tmp_path / "runs/benchmark/head.json").read_text())["rows"]
    assert {row["variant"] for row in rows} == {"reference eager", "folded eager", "fused"}
    assert {row["case"] for row in rows} == {"interaction forward", "classify to logits forward", "head to labels"}
    assert "look at the pixels" in printed and "refused: look at the pixels, fused, but wrong" in printed
    assert len(re.findall(r": here [\d.]+ times as fast as the reference", printed)) == 3


def test_every_example_is_listed() -> None:
    listed = set(re.findall(r"\[`?(\w+\.py)`?\]", (EXAMPLES / "README.md").read_text()))
    assert listed == {path.name for path in EXAMPLES.glob("*.py")}
