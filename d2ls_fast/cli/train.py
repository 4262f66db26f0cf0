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
    resume_previous: Annotated[
        bool, typer.Option("--resume-previous", help="continue from the state before the last one")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the run in the output folder")] = False,
) -> None:
    """Train a model by a recipe; writes checkpoints, metrics and a report into its output folder."""
    from d2ls_fast.config import load_settings
    from d2ls_fast.errors import UserError
    from d2ls_fast.training.config import TrainSettings
    from d2ls_fast.training.fit import fit
    from d2ls_fast.training.launch import launch, processes_to_start

    resume = resume or resume_previous
    if resume and overwrite:
        raise UserError("--resume continues a run and --overwrite replaces it; give one of the two")
    settings = load_settings(TrainSettings, config, overrides or [])
    if count := processes_to_start(settings):
        flag = "--resume-previous" if resume_previous else "--resume" if resume else "--overwrite" if overwrite else ""
        given = [flag] if flag else []
        raise typer.Exit(launch(count, ["train", str(config), *(overrides or []), *given]))
    fit(settings, resume=resume, overwrite=overwrite, previous=resume_previous)
