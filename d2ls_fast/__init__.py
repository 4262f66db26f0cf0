"""d2ls_fast: fused kernels, layers and a full training and inference stack for D2LS.

D2LS is dynamic dictionary learning for remote-sensing image segmentation (ICCV 2025, arXiv 2503.06683).

    >>> import d2ls_fast as d2
    >>> model = d2.create_model("convnext_base", num_classes=7)
    >>> labels = model.predict(images)
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("d2ls_fast")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+source"

from d2ls_fast import nn, ops
from d2ls_fast.backends import BackendError, backend, backends
from d2ls_fast.errors import UserError

if TYPE_CHECKING:
    from d2ls_fast.export.exported import Exported
    from d2ls_fast.export.load import load_exported
    from d2ls_fast.models.checkpoint import ModelCard, load_checkpoint, save_checkpoint
    from d2ls_fast.models.head import D2LSHead, D2LSOutput
    from d2ls_fast.models.load_official import load_official
    from d2ls_fast.models.model import D2LS, create_model

# Imported when first asked for: whole models need timm and torchvision, the layers and operators need PyTorch alone.
_MODELS = {
    "D2LS": "model",
    "D2LSHead": "head",
    "D2LSOutput": "head",
    "ModelCard": "checkpoint",
    "create_model": "model",
    "load_checkpoint": "checkpoint",
    "load_official": "load_official",
    "save_checkpoint": "checkpoint",
}
_EXPORT = {"Exported": "exported", "load_exported": "load"}


def __getattr__(name: str) -> Any:
    if name in _EXPORT:
        return getattr(import_module(f"d2ls_fast.export.{_EXPORT[name]}"), name)
    if name not in _MODELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"d2ls_fast.models.{_MODELS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_MODELS) | set(_EXPORT))


__all__ = [
    "D2LS",
    "BackendError",
    "D2LSHead",
    "D2LSOutput",
    "Exported",
    "ModelCard",
    "UserError",
    "__version__",
    "backend",
    "backends",
    "create_model",
    "load_checkpoint",
    "load_exported",
    "load_official",
    "nn",
    "ops",
    "save_checkpoint",
]
