"""``d2ls-fast convert``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Reduction(str, Enum):
    """How a class's prototype scores become one."""

    logsumexp = "logsumexp"
    max = "max"
    mean = "mean"


def convert(
    source: Annotated[Path, typer.Argument(help="a checkpoint of the D2LS release or a fork", metavar="OFFICIAL")],
    target: Annotated[Path, typer.Argument(help="the checkpoint to write (.safetensors)", metavar="OUTPUT")],
    backbone: Annotated[
        str | None, typer.Option("--backbone", help="torchvision's name of it; default: recognised by its weights")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="what it was trained on, for class names and colours: loveda, ...")
    ] = None,
    heads: Annotated[int, typer.Option("--heads", min=1, help="attention heads")] = 8,
    prototypes: Annotated[int, typer.Option("--prototypes", min=1, help="dictionary entries of a class")] = 1,
    reduction: Annotated[Reduction, typer.Option("--reduction", help="of a class's prototypes")] = Reduction.logsumexp,
    static: Annotated[bool, typer.Option("--static", help="it was trained with the static dictionary only")] = False,
    mean: Annotated[
        str | None, typer.Option("--mean", help="of the bands, comma-separated, raw units; default: ImageNet's")
    ] = None,
    std: Annotated[str | None, typer.Option("--std", help="as --mean")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="JSON file for what became of every key")] = None,
) -> None:
    """Bring a released D2LS checkpoint to this package's form, and say what became of its keys."""
    from dataclasses import asdict

    from rich.console import Console

    from d2ls_fast.errors import UserError
    from d2ls_fast.files import write_json
    from d2ls_fast.models.checkpoint import save_checkpoint
    from d2ls_fast.models.load_official import convert_official
    from d2ls_fast.models.official_card import official_card

    if target.suffix != ".safetensors":
        raise UserError(f"{target}: the result is a .safetensors file; name it so")
    if target.exists() and source.exists() and target.samefile(source):
        raise UserError(f"{target}: is the checkpoint to convert; name another file for the result")
    console = Console()
    options = {"num_heads": heads, "prototypes": prototypes, "prototype_reduction": reduction.value}
    with console.status(f"converting {source}"):
        model, keys = convert_official(source, backbone, **options, **({"dynamic": False} if static else {}))
        card = official_card(model, dataset, _numbers(mean, "--mean"), _numbers(std, "--std"))
        save_checkpoint(target, model, card)
    if report is not None:
        write_json(report, asdict(keys))
    lines = [
        f"{model.config['backbone']}, {len(card.classes)} classes, {model.config['in_chans']} bands,"
        f" {model.config['stages']} stages, width {model.config['embed_dim']}",
        f"{len(keys.used)} keys used, {len(keys.dead)} dead (the release never uses them),"
        f" {len(keys.unexpected)} unexpected" + (" and left out:" if keys.unexpected else ""),
        *(f"  {key}" for key in keys.unexpected),
        f"written: {target}" + (f", {report}" if report else ""),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _numbers(text: str | None, option: str) -> list[float] | None:
    from d2ls_fast.errors import UserError

    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: must be numbers with commas between, such as 123.7,116.3,103.5") from None
