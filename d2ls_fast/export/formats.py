"""A traced program written down in each format, the manifest in the format's own metadata."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch.export import ExportedProgram

from d2ls_fast.errors import UserError
from d2ls_fast.export.manifest import KEY, Manifest
from d2ls_fast.export.trace import reason
from d2ls_fast.ops.dictionary_step import dictionary_step_definition


def write_program(program: ExportedProgram, manifest: Manifest, path: Path) -> Manifest:
    """With ``torch.export.save``; the manifest is the extra file ``d2ls_fast``."""
    torch.export.save(program, path, extra_files={KEY: manifest.to_json()})
    return manifest


def compilable(program: ExportedProgram) -> ExportedProgram:
    """A traced program as AOTInductor can compile it: with ``dictionary_step`` in PyTorch.

    AOTInductor (torch 2.15) hands that operator's empty lists of tensors over as None. It is a tiny part.
    """
    steps = (torch.ops.d2ls_fast.dictionary_step.default, torch.ops.d2ls_fast.dictionary_step_triton.default)
    return program.run_decompositions({step: dictionary_step_definition for step in steps})


def write_aoti(program: ExportedProgram, manifest: Manifest, path: Path) -> Manifest:
    """Compiled by AOTInductor for this machine's kind of processor; the manifest is in the package's metadata.

    Raises:
        UserError: the model cannot be compiled.
    """
    import torch._inductor

    settings = {"aot_inductor.metadata": {KEY: manifest.to_json()}}
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)
    except Exception as error:  # of the compiler, or of what PyTorch cannot translate for it
        raise UserError(
            f"--format aoti: AOTInductor cannot compile this model ({reason(error)}); take exported-program"
        ) from error
    return manifest


def check_compiler() -> None:
    """Raise :class:`UserError` where AOTInductor finds no C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UserError(
            "--format aoti: needs a C++ compiler, and there is none; install g++, or name one with CXX"
        ) from None


def write_onnx(program: ExportedProgram, manifest: Manifest, path: Path) -> Manifest:
    """Translated by ``torch.onnx``, checked by ``onnx.checker``; the manifest is in ``metadata_props``.

    Returns:
        the manifest with the opset of the file.

    Raises:
        UserError: the packages onnx and onnxscript are missing, or the model has an operator that ONNX has not.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ModuleNotFoundError as error:
        raise UserError(f"--format onnx: needs the Python package {error.name}; pip install {error.name}") from None
    try:
        translated = torch.onnx.export(
            program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
        )
    except Exception as error:  # its errors have no common type
        raise UserError(
            f"--format onnx: torch.onnx cannot translate this model ({reason(error)}); take exported-program"
        ) from error
    assert translated is not None  # with dynamo=True
    model = translated.model
    manifest = replace(manifest, opset=model.opset_imports[""])
    model.metadata_props[KEY] = manifest.to_json()
    translated.save(str(path))
    onnx.checker.check_model(str(path), full_check=True)
    return manifest


WRITERS = {"exported-program": write_program, "aoti": write_aoti, "onnx": write_onnx}
