"""``d2ls-fast export``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from d2ls_fast.cli.predict import Device

if TYPE_CHECKING:
    from d2ls_fast.export.export import Report


class FileFormat(str, Enum):
    """What is written."""

    exported_program = "exported-program"
    aoti = "aoti"
    onnx = "onnx"


class Precision(str, Enum):
    """The type of the model's products."""

    fp32 = "fp32"
    bf16 = "bf16"


class OperatorKind(str, Enum):
    """Whose operators are in the graph."""

    plain = "plain"
    fused = "fused"


def export(
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="trained model (.safetensors)")],
    format: Annotated[FileFormat, typer.Option("--format", help="what to write")],
    output: Annotated[
        Path | None, typer.Option("--output", help="the file; default: the checkpoint's name with .pt2 or .onnx")
    ] = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic/--static", help="any batch and any size from 64 x 64, or just one")
    ] = True,
    size: Annotated[
        str | None, typer.Option("--size", help="with --static: height and width to the model", metavar="HxW")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="with --static: images at once; default: 1")
    ] = None,
    operators: Annotated[
        OperatorKind | None,
        typer.Option(
            "--operators",
            help="plain: PyTorch's alone, runs without this package; fused: this package's kernels, faster;"
            " default: fused for aoti where they are built, else plain",
        ),
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="where the file is to run")] = Device.auto,
    precision: Annotated[Precision, typer.Option("--precision", help="of the model's products")] = Precision.fp32,
    check: Annotated[
        list[Path] | None, typer.Option("--check", help="an image to compare on as well; may be repeated")
    ] = None,
) -> None:
    """Write a trained model as a torch.export program, an AOTInductor package or ONNX, checked against the original."""
    import torch
    from rich.console import Console

    from d2ls_fast.errors import UserError
    from d2ls_fast.export.export import export_model
    from d2ls_fast.export.manifest import SUFFIXES
    from d2ls_fast.models.checkpoint import load_checkpoint

    if device is Device.cuda and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    on_gpu = device is Device.cuda or (device is Device.auto and torch.cuda.is_available())
    target = "cuda" if on_gpu and (device is Device.cuda or format is not FileFormat.onnx) else "cpu"
    shape = _shape(dynamic, size, batch)
    path = output or checkpoint.with_suffix(SUFFIXES[format.value])
    if path.exists() and checkpoint.exists() and path.samefile(checkpoint):
        raise UserError(f"{path}: is the checkpoint to export; name another file with --output")
    for image in check or []:
        if not image.is_file():
            raise UserError(f"{image}: no such image; correct --check")
    model, card = load_checkpoint(checkpoint, target)
    console = Console()
    with console.status("exporting") as status:
        report = export_model(
            model,
            card,
            path,
            format.value,
            operators.value if operators else None,
            shape,
            precision.value,
            check or [],
            lambda stage: status.update(f"exporting: {stage}"),
        )
    _print(console, report)


def _shape(dynamic: bool, size: str | None, batch: int | None) -> tuple[int, int, int] | None:
    from d2ls_fast.errors import UserError

    if dynamic:
        if size is not None or batch is not None:
            raise UserError("--size and --batch: go with --static; a dynamic file takes any")
        return None
    height, _, width = (size or "").lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise UserError(f"--size {size}: --static needs height and width, such as --size 512x512")
    return batch or 1, int(height), int(width)


def _print(console: Any, report: Report) -> None:
    from rich.table import Table

    manifest, agreement = report.manifest, report.agreement
    own = f" ({', '.join(report.own_operators)}; import d2ls_fast to run it)" if report.own_operators else ""
    share = f"{agreement.labels} of {agreement.pixels}"
    rows = {
        "format": manifest.format + (f", opset {manifest.opset}" if manifest.opset else ""),
        "operators": manifest.operators + own,
        "runs on": f"{manifest.device}, {manifest.precision}, written by torch {manifest.torch}",
        "takes": f"{manifest.sizes}, in multiples of 32 (load_exported pads)",
        "compared on": ", ".join(agreement.compared),
        "largest difference": f"{agreement.difference:.1e} of the largest logit (allowed: {agreement.allowed:.1e})",
        "labels that differ": share + (", at near ties" if agreement.labels else ""),
        "file": f"{report.path}, {report.bytes / 1e6:.1f} MB",
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table, markup=False, highlight=False)
