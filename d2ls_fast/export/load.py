"""Opening an exported file."""

from __future__ import annotations

import io
import json
import logging
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d2ls_fast.errors import UserError
from d2ls_fast.export.exported import Exported
from d2ls_fast.export.manifest import KEY, Manifest, read_manifest
from d2ls_fast.export.trace import reason
from d2ls_fast.export.vet import vetted_program


def load_exported(path: str | os.PathLike[str], trust: bool = False) -> Exported:
    """Open what ``d2ls-fast export`` wrote.

    ONNX files are data and run in onnxruntime on the CPU. A torch.export program is read as data, checked to hold
    nothing but tensors and their operators (:mod:`d2ls_fast.export.vet`), and only then given to PyTorch, whose own
    loader runs code from a file. An AOTInductor package *is* native code.

    Args:
        path: a ``.pt2`` or ``.onnx`` file.
        trust: you know who made the file, and let it run code: an AOTInductor package needs that; a program is then
            loaded unchecked.

    Raises:
        UserError: the file is missing, damaged or foreign, needs trust, another device or a package that is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .pt2 or .onnx file written by d2ls-fast export")
    with quiet():
        if path.suffix == ".onnx":
            return _onnx(path)
        return _pt2(path, trust)


def _pt2(path: Path, trust: bool) -> Exported:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.partition("/")[2]: name for name in archive.namelist()}
            native = [name for name in members if name.startswith("data/aotinductor/")]
            text = archive.read(members[f"extra/{KEY}"]) if f"extra/{KEY}" in members else None
            for name in native:
                if name.endswith("metadata.json"):
                    text = json.loads(archive.read(members[name])).get(KEY, text)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, AttributeError, NotImplementedError) as error:
        raise UserError(f"{path}: not a readable .pt2 file ({reason(error)}); it must be a complete one") from None
    manifest = read_manifest(text, str(path))
    if manifest.device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{path}: exported for a GPU, and PyTorch sees none here; export it with --device cpu")
    if native and not trust:
        raise UserError(
            f"{path}: holds native code, which can do anything once it is loaded;"
            " if you know who made it, say so with load_exported(path, trust=True)"
        )
    source = path if trust else vetted_program(path)
    run = _native(path) if native else _program(path, source)
    return Exported(run, manifest)


def _program(path: Path, source: Path | io.BytesIO) -> Callable[[Tensor], Tensor]:
    try:
        return torch.export.load(source).module()
    except Exception as error:  # whatever the loader stumbles over
        raise UserError(
            f"{path}: torch {torch.__version__} cannot open this program ({reason(error)});"
            " it is damaged or of another version"
        ) from error


def _native(path: Path) -> Callable[[Tensor], Tensor]:
    import torch._inductor

    try:
        return torch._inductor.aoti_load_package(str(path))
    except Exception as error:
        raise UserError(
            f"{path}: torch {torch.__version__} cannot load this package ({reason(error)});"
            " it is damaged or made for another machine"
        ) from error


def _onnx(path: Path) -> Exported:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise UserError(f"{path}: needs the Python package onnxruntime; pip install onnxruntime") from None
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        text = session.get_modelmeta().custom_metadata_map.get(KEY)
    except Exception as error:  # its errors have no common type
        raise UserError(
            f"{path}: onnxruntime cannot open this file ({reason(error)}); it must be a complete one"
        ) from None
    manifest: Manifest = read_manifest(text, str(path))

    def run(images: Tensor) -> Tensor:
        arrays: list[np.ndarray[Any, Any]] = session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(arrays[0])

    return Exported(run, manifest)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' running commentary, traces of errors that are told in one line among it."""
    names = ("torch.export", "torch.onnx", "torch._export", "torch.utils", "torch._inductor", "onnxscript", "onnx_ir")
    loggers = {name: logging.getLogger(name) for name in names}
    levels = {name: logger.level for name, logger in loggers.items()}
    for logger in loggers.values():
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, logger in loggers.items():
            logger.setLevel(levels[name])
