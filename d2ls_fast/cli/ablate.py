"""``d2ls-fast ablate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def ablate(
    config: Annotated[Path, typer.Argument(help="YAML recipe of the full model", metavar="CONFIG")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="settings to change, such as output=DIR", metavar="[KEY=VALUE]...")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="runs of every row, from the recipe's seed on")] = 3,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="optimizer steps instead of the recipe's")] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="this row, such as full or prototype; may be repeated")
    ] = None,
) -> None:
    """Train D2LS with one part taken away at a time and compare; finished runs are not done again."""
    from rich.console import Console

    from d2ls_fast.config import load_settings
    from d2ls_fast.training import ablation_report
    from d2ls_fast.training.ablate import ablate as run
    from d2ls_fast.training.ablate import folder_of
    from d2ls_fast.training.config import TrainSettings

    changes = [*(overrides or []), *([] if steps is None else [f"steps={steps}", "epochs=null"])]
    settings = load_settings(TrainSettings, config, changes)
    console = Console()
    rows = run(settings, seeds, only or [], console)
    options = [f"--seeds {seeds}", *([] if steps is None else [f"--steps {steps}"])]
    options += [f"--only {key}" for key in only or []]
    kept = [change for change in overrides or [] if not change.startswith(("output=", "data.root="))]
    command = " ".join(["d2ls-fast ablate", str(config), *kept, *options])
    paths = ablation_report.write(folder_of(settings), rows, settings, command)
    console.print(ablation_report.table(rows))
    console.print(f"written: {', '.join(map(str, paths))}", highlight=False, soft_wrap=True)
