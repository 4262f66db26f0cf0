"""``d2ls-fast train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="YAML recipe, such as configs/demo.yaml", metavar="CONFIG")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="settings to change, such as optimizer.lr=1e-4", metavar="[KEY=VALUE]...")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in the output folder")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the run in the output folder")] = False,
) -> None:
    """Train a model by a recipe; writes checkpoints, metrics and a report into its output folder."""
    from d2ls_fast.config import load_settings
    from d2ls_fast.errors import UserError
    from d2ls_fast.training.config import TrainSettings
    from d2ls_fast.training.fit import fit

    if resume and overwrite:
        raise UserError("--resume continues a run and --overwrite replaces it; give one of the two")
    fit(load_settings(TrainSettings, config, overrides or []), resume=resume, overwrite=overwrite)
