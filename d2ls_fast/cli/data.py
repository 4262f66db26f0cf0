"""``d2ls-fast data``: work on a recipe's data set."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

data = typer.Typer(name="data", help="Work on the data set of a recipe.", no_args_is_help=True, rich_markup_mode=None)


@data.callback()
def group() -> None:
    """Work on the data set of a recipe."""


class Format(str, Enum):
    """How the images of tiles are stored."""

    tif = "tif"
    png = "png"


@data.command()
def tile(
    config: Annotated[Path, typer.Argument(help="the recipe that names the data", metavar="CONFIG")],
    output: Annotated[Path, typer.Option("--output", help="new folder for the tiles and their recipe")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="settings to change, such as data.root=DIR", metavar="[KEY=VALUE]...")
    ] = None,
    size: Annotated[int, typer.Option("--size", min=32, help="side of a training tile in source pixels")] = 1024,
    overlap: Annotated[int, typer.Option("--overlap", min=0, help="pixels that neighbouring tiles share")] = 0,
    image_format: Annotated[Format, typer.Option("--format", help="of the images; masks are PNG")] = Format.tif,
) -> None:
    """Write a data set as tiles, with a recipe that reads them: for slow disks (large images are read by window)."""
    from rich.console import Console
    from rich.progress import Progress

    from d2ls_fast.config import load_settings
    from d2ls_fast.data.tile import tile_dataset
    from d2ls_fast.errors import UserError
    from d2ls_fast.files import building_folder, write_yaml
    from d2ls_fast.training.config import TrainSettings

    if overlap >= size:
        raise UserError(f"--overlap {overlap}: not below --size {size}; neighbouring tiles share less than all")
    settings = load_settings(TrainSettings, config, overrides or [])
    console = Console()
    tiles = 0

    with building_folder(output, "--output") as folder:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("tiles", total=None)

            def advance(done: int, total: int) -> None:
                nonlocal tiles
                tiles = done
                bar.update(task, completed=done, total=total)

            group = tile_dataset(
                settings.data, settings.augment, folder, size, overlap, f".{image_format.value}", advance
            )
        recipe = settings.model_dump(mode="json")
        write_yaml(folder / "recipe.yaml", recipe | {"data": group | {"root": str(output)}})
    console.print(
        f"{tiles} tiles, {group['samples_per_epoch']} training items an epoch as before; train with"
        f" {output / 'recipe.yaml'}",
        highlight=False,
        soft_wrap=True,
    )


@data.command()
def check(
    config: Annotated[Path, typer.Argument(help="the recipe that names the data", metavar="CONFIG")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="settings to change, such as data.root=DIR", metavar="[KEY=VALUE]...")
    ] = None,
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
    from d2ls_fast.data.check_report import check_tables, check_to_json, fault_lines
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
    for line in fault_lines(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
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
