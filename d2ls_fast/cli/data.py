"""``d2ls-fast data``: what concerns a data set alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

data = typer.Typer(help="Check and prepare the data set of a recipe.", no_args_is_help=True, rich_markup_mode=None)

Config = Annotated[Path, typer.Argument(help="the recipe that names the data", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="settings to change, such as data.root=DIR", metavar="[KEY=VALUE]...")
]


@data.command()
def check(
    config: Config,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="folder for check.json and contact_sheet.png; default: none")
    ] = None,
    pictures: Annotated[int, typer.Option("--pictures", min=1, help="images of each split on the contact sheet")] = 12,
) -> None:
    """Read every image and mask once: counts, class frequencies, band statistics, and all faults (then status 2)."""
    from rich.console import Console
    from rich.progress import Progress

    from d2ls_fast.config import load_settings
    from d2ls_fast.data.check import check_dataset
    from d2ls_fast.data.check_report import check_tables, check_to_json
    from d2ls_fast.data.contact_sheet import write_contact_sheet
    from d2ls_fast.errors import UserError
    from d2ls_fast.files import writable_folder, write_json
    from d2ls_fast.training.config import TrainSettings

    settings = load_settings(TrainSettings, config, overrides or []).data
    folder = None if output is None else writable_folder(output, "--output")
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        found = check_dataset(
            settings,
            pictures if folder is not None else 0,
            lambda scans, total: bar.track(scans, total, description="images"),
        )
    for table in check_tables(found):
        console.print(table)
    written = ""
    if folder is not None:
        write_json(folder / "check.json", {"recipe": str(config), **check_to_json(found)})
        written = str(folder / "check.json")
        if any(found.shown.values()):
            write_contact_sheet(folder / "contact_sheet.png", found.shown, found.classes, found.palette)
            written += f", {folder / 'contact_sheet.png'}"
        console.print(f"written: {written}", highlight=False, soft_wrap=True)
    if found.faults:
        raise UserError(
            f"{settings.root}: {len(found.faults)} fault(s), listed above; mend the files or the recipe and check again"
        )
    console.print(f"{settings.root}: no fault found", highlight=False, soft_wrap=True)
