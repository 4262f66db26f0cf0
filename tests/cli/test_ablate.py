"""``d2ls-fast ablate``."""

from __future__ import annotations

from pathlib import Path

from tiny_recipe import write_recipe
from typer.testing import CliRunner

from d2ls_fast.cli.main import app


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit status, output and error output of ``d2ls-fast ablate ...``."""
    result = CliRunner().invoke(app, ["ablate", *map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


def test_one_line_a_run_and_a_table(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, evaluate_every=1)
    options = ("--seeds", 1, "--steps", 1, "--only", "full", "--only", "prototype")
    status, shown, message = run(recipe, "optimizer.lr=1e-3", *options)
    assert status == 0, message
    assert "[1/2] full model, seed 42: mIoU" in shown and "[2/2] static prototypes (PANet), seed 42" in shown
    assert "held-out mean IoU over 1 seeds" in shown
    page = (tmp_path / "run/ablation/ablation.md").read_text()
    assert "optimizer.lr=1e-3 --seeds 1 --steps 1 --only full --only prototype`: 1 steps of 4 crops, seeds 42" in page


def test_wrong_calls_end_in_one_line(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    for arguments, named in (
        (("--only", "ful"), "did you mean full"),
        (("model.stage=2",), "model.stages"),
        (("data.root=nowhere",), "nowhere"),
    ):
        status, _, message = run(recipe, "--seeds", 1, *arguments)
        assert status == 2 and message.startswith("error: ") and message.count("\n") == 1 and named in message
