"""``d2ls-fast submit``: archives for the contests of data sets whose test labels are not public."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from d2ls_fast.cli.evaluate import MERGES, PRESETS
from d2ls_fast.cli.predict import Device, Precision, torch_dtype

if TYPE_CHECKING:
    from rich.console import Console

    from d2ls_fast.inference.submissions import Contest
    from d2ls_fast.inference.submissions.check import Advance, Checked
    from d2ls_fast.inference.submissions.contest import Files

submit = typer.Typer(
    name="submit", help="Make and check a contest's archive.", no_args_is_help=True, rich_markup_mode=None
)

_OF_THE_MODEL = ("window", "overlap", "batch", "tta", "tta_merge", "device", "precision")

Images = Annotated[Path, typer.Option("--images", help="the test images, in the folders in which they are published")]

Picture = Annotated[Path | None, typer.Option("--picture", help="also draw test images beside their maps (.png)")]


@submit.callback()
def group() -> None:
    """Make and check a contest's archive."""


class ContestName(str, Enum):
    """The names of inference.submissions, which --help should not wait for."""

    loveda = "loveda"
    uavid = "uavid"


@submit.command("uavid", help="Write and check the archive for UAVid's contest: a zip of coloured seqN/Labels/ID.png.")
@submit.command("loveda", help="Write and check the archive for LoveDA's contest: a flat zip of ID.png, values 0..6.")
def write(
    context: typer.Context,
    images: Images,
    output: Annotated[Path, typer.Option("--output", help="the archive to write (.zip)")],
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", help="model to map with (.safetensors)")] = None,
    from_maps: Annotated[
        Path | None, typer.Option("--from-maps", help="or: folder of label rasters made before, of class indices")
    ] = None,
    window: Annotated[int, typer.Option("--window", help="side of a window in model pixels")] = 1024,
    overlap: Annotated[int, typer.Option("--overlap", help="pixels that neighbouring windows share at least")] = 128,
    batch: Annotated[int, typer.Option("--batch", help="windows, or augmented views of them, per model call")] = 4,
    tta: Annotated[str, typer.Option("--tta", help="test-time augmentation", metavar=PRESETS)] = "none",
    tta_merge: Annotated[
        str, typer.Option("--tta-merge", help="what the mean over its passes is taken of", metavar=MERGES)
    ] = "logits",
    device: Annotated[Device, typer.Option("--device", help="where the model runs")] = Device.auto,
    precision: Annotated[Precision, typer.Option("--precision", help="of the model's products")] = Precision.fp32,
    picture: Picture = None,
) -> None:
    """The archive of label maps, predicted or made before, for the contest that the command is named after."""
    from rich.console import Console

    from d2ls_fast.errors import UserError
    from d2ls_fast.files import writable_folder
    from d2ls_fast.inference.predictor import Predictor
    from d2ls_fast.inference.sources import check_scene
    from d2ls_fast.inference.submissions import CONTESTS
    from d2ls_fast.inference.submissions.archive import predicted_maps, stored_maps, write_submission

    contest, console = CONTESTS[context.command.name or ""], Console()
    if (checkpoint is None) == (from_maps is None):
        raise UserError("give either --checkpoint, to map the test images, or --from-maps, a folder of their maps")
    given = [
        name for name in _OF_THE_MODEL if (source := context.get_parameter_source(name)) and source.name != "DEFAULT"
    ]
    if from_maps is not None and given:
        option = given[0].replace("_", "-")
        raise UserError(f"--{option}: changes nothing in maps that were made before; leave it out with --from-maps")
    if output.suffix.lower() != ".zip" or output.is_dir():
        raise UserError(f"{output}: not the name of a zip file; give one that ends in .zip with --output")
    found = contest.find_images(images)
    if from_maps is not None:
        maps = stored_maps(contest, contest.find_maps(from_maps, found))
    else:
        assert checkpoint is not None
        windows: dict[str, Any] = {"window": window, "overlap": overlap, "batch": batch}
        predictor = Predictor(checkpoint, device.value, torch_dtype(precision), **windows, tta=tta, tta_merge=tta_merge)
        contest.check_classes(predictor.card, checkpoint)
        for path in found.values():
            check_scene(path, predictor.card.bands)
        maps = predicted_maps(predictor, found)
    writable_folder(output.parent, "--output")
    _check_picture(picture)
    with _progress(console, ("mapping" if checkpoint else "writing", "checking"), len(found)) as advance:
        checked = write_submission(contest, found, maps, output, advance)
    _show(console, contest, checked, output, found, picture, "wrote")


@submit.command()
def check(
    contest: Annotated[ContestName, typer.Argument(help="whose rules")],
    archive: Annotated[Path, typer.Argument(help="the archive (.zip)", metavar="FILE.zip")],
    images: Images,
    picture: Picture = None,
) -> None:
    """Check an archive of any origin: names against the test images, sizes, kinds, values, nothing missing or extra."""
    from rich.console import Console

    from d2ls_fast.inference.submissions import CONTESTS
    from d2ls_fast.inference.submissions.check import check_archive

    console = Console()
    _check_picture(picture)
    found: Files = CONTESTS[contest.value].find_images(images)
    with _progress(console, ("checking",), len(found)) as advance:
        checked = check_archive(archive, contest.value, found, advance)
    _show(console, CONTESTS[contest.value], checked, archive, found, picture, "checked")


def _check_picture(picture: Path | None) -> None:
    from d2ls_fast.errors import UserError
    from d2ls_fast.files import writable_folder

    if picture is None:
        return
    if picture.suffix.lower() != ".png" or picture.is_dir():
        raise UserError(f"{picture}: not the name of a PNG file; give one that ends in .png with --picture")
    writable_folder(picture.parent, "--picture")


@contextmanager
def _progress(console: Console, stages: tuple[str, ...], total: int) -> Iterator[Advance]:
    """Bars, one after another, of ``total`` pictures each; gives what moves them on."""
    from itertools import chain, repeat

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = chain.from_iterable(repeat(bar.add_task(stage, total=total), total) for stage in stages)
        yield lambda: bar.advance(next(tasks))


def _show(
    console: Console,
    contest: Contest,
    checked: Checked,
    archive: Path,
    images: Files,
    picture: Path | None,
    done: str,
) -> None:
    """The classes' shares, which show a model gone wrong, and whether this is the whole of the contest's test set."""
    from rich.table import Table

    from d2ls_fast.inference.submissions.preview import write_preview

    table = Table(title=f"{contest.title}: share of the pixels")
    for name in contest.classes:
        table.add_column(name, justify="right")
    table.add_row(*(f"{share:.1%}" for share in checked.shares))
    console.print(table)
    if checked.pictures != contest.test_images:
        console.print(
            f"note: {checked.pictures} test images were found, {contest.title} has {contest.test_images}: the contest "
            "will not take this archive; give the whole test set with --images",
            soft_wrap=True,
            highlight=False,
        )
    console.print(
        f"{done} {archive}: {checked.pictures} label maps, {checked.size / 1e6:.1f} MB, no fault found",
        soft_wrap=True,
        highlight=False,
    )
    if picture is not None:
        write_preview(contest, archive, images, picture)
        console.print(f"wrote {picture}", soft_wrap=True, highlight=False)
