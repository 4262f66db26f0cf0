"""d2ls_fast: fused kernels, layers and a full training and inference stack for D2LS.

D2LS is dynamic dictionary learning for remote-sensing image segmentation (ICCV 2025, arXiv 2503.06683).

    >>> import d2ls_fast as d2
    >>> model = d2.create_model("convnext_base", num_classes=7)
    >>> labels = model.predict(images)
    >>> labels = d2.Predictor("trained.safetensors").predict(scene)
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
    from d2ls_fast.inference.predictor import Predictor
    from d2ls_fast.models.checkpoint import ModelCard, load_checkpoint, save_checkpoint
    from d2ls_fast.models.head import D2LSHead, D2LSOutput
    from d2ls_fast.models.load_official import load_official
    from d2ls_fast.models.model import D2LS, create_model
    from d2ls_fast.models.patching import PatchReport, patch, patch_report, unpatch

# Imported when first asked for: whole models need timm and torchvision, the layers and operators need PyTorch alone.
_LATER = {
    "D2LS": "models.model",
    "D2LSHead": "models.head",
    "D2LSOutput": "models.head",
    "Exported": "export.exported",
    "ModelCard": "models.checkpoint",
    "PatchReport": "models.patching",
    "Predictor": "inference.predictor",
    "create_model": "models.model",
    "load_checkpoint": "models.checkpoint",
    "load_exported": "export.load",
    "load_official": "models.load_official",
    "patch": "models.patching",
    "patch_report": "models.patching",
    "save_checkpoint": "models.checkpoint",
    "unpatch": "models.patching",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"d2ls_fast.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LATER))


__all__ = [
    "D2LS",
    "BackendError",
    "D2LSHead",
    "D2LSOutput",
    "Exported",
    "ModelCard",
    "PatchReport",
    "Predictor",
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
    "patch",
    "patch_report",
    "save_checkpoint",
    "unpatch",
]
