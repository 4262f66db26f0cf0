"""From a model to a checked file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from d2ls_fast.errors import UserError
from d2ls_fast.export.agreement import Agreement, compare
from d2ls_fast.export.formats import WRITERS, check_compiler, compilable
from d2ls_fast.export.load import load_exported, quiet
from d2ls_fast.export.manifest import SUFFIXES, Format, Manifest, Operators, Precision
from d2ls_fast.export.trace import describe, own_operators, trace
from d2ls_fast.files import replacing
from d2ls_fast.models.base import STRIDE, SegmentationModel
from d2ls_fast.models.checkpoint import ModelCard


@dataclass(frozen=True)
class Report:
    """What was written: the file, its size in bytes, this package's operators in it, and how it was checked."""

    path: Path
    bytes: int
    manifest: Manifest
    own_operators: list[str]
    agreement: Agreement


def export_model(
    model: SegmentationModel,
    card: ModelCard,
    path: Path,
    format: Format,
    operators: Operators | None = None,
    shape: tuple[int, int, int] | None = None,
    precision: Precision = "fp32",
    check: Sequence[Path] = (),
    progress: Callable[[str], None] = lambda stage: None,
) -> Report:
    """Write ``model`` to ``path``, open the file again and compare it with the model; keep it only if they agree.

    Args:
        model: D2LS or a peer, on the device where the file shall run.
        card: of its checkpoint; it travels in the file.
        path: ``.pt2`` (``exported-program`` and ``aoti``) or ``.onnx``.
        format: ``exported-program``, ``aoti`` or ``onnx``.
        operators: ``plain`` or ``fused``, see :class:`~d2ls_fast.export.manifest.Manifest`; by default fused for
            ``aoti``, whose purpose is speed, where this package's kernels are there, and plain otherwise.
        shape: (B, H, W) to the model, if the file shall take no other; H and W multiples of 32.
        precision: ``fp32``, or ``bf16`` for the products.
        check: images to compare on, besides random ones.
        progress: called with the name of each stage.

    Raises:
        UserError: the options do not go together, the model cannot be exported so, a package or a compiler is missing,
            the file cannot be written, or it does not agree with the model. There is no file then.
    """
    device = next(model.parameters()).device.type
    operators = operators or _default_operators(format, device)
    _check_options(path, format, operators, shape, precision, device)
    manifest = Manifest(card, format, operators, precision, device, shape, None, torch.__version__)
    progress("tracing")
    with quiet():
        program = trace(model, operators, precision, shape)
        if format == "aoti":
            program = compilable(program)
        own = own_operators(program)
        with replacing(path) as temporary:
            progress("compiling" if format == "aoti" else "writing")
            manifest = WRITERS[format](program, manifest, temporary)
            progress("comparing with the original")
            agreement = _agreement(temporary, model, manifest, list(check))
    return Report(path, path.stat().st_size, manifest, own, agreement)


def _agreement(temporary: Path, model: SegmentationModel, manifest: Manifest, check: list[Path]) -> Agreement:
    try:
        exported = load_exported(temporary, trust=manifest.format == "aoti")
        if exported.manifest != manifest:
            raise UserError(f"{temporary}: its card came back changed")
        return compare(exported, model, check)
    except UserError:
        raise
    except Exception as error:  # a graph fails in many ways on a size that it was not made for
        remedy = "export it with --static, --batch and --size" if manifest.shape is None else "take another format"
        raise UserError(f"{describe(model)}: the exported graph does not run at every size; {remedy}") from error


def _default_operators(format: Format, device: str) -> Operators:
    from d2ls_fast.backends import backends

    kernels = backends()["cpu" if device == "cpu" else "triton"] == "available"
    return "fused" if format == "aoti" and kernels else "plain"


def _check_options(
    path: Path,
    format: Format,
    operators: Operators,
    shape: tuple[int, int, int] | None,
    precision: Precision,
    device: str,
) -> None:
    if path.suffix != SUFFIXES[format]:
        raise UserError(f"{path}: a file of the format {format} ends in {SUFFIXES[format]}; name it so")
    if format == "onnx" and (operators == "fused" or precision != "fp32" or device != "cpu"):
        raise UserError(
            "--format onnx: is written with plain operators in fp32 from the CPU;"
            " leave out --operators, --precision and --device, onnxruntime has its own"
        )
    if shape is not None and (shape[0] < 1 or min(shape[1:]) < STRIDE or any(side % STRIDE for side in shape[1:])):
        raise UserError(
            f"--batch {shape[0]} --size {shape[1]}x{shape[2]}: sides must be multiples of {STRIDE},"
            " the batch at least 1"
        )
    if format == "aoti":
        check_compiler()
