"""d2ls_fast: fused kernels, layers and a full training and inference stack for D2LS.

D2LS is dynamic dictionary learning for remote-sensing image segmentation (ICCV 2025, arXiv 2503.06683).

    >>> import d2ls_fast as d2
    >>> model = d2.create_model("convnext_base", num_classes=7)
    >>> labels = model.predict(images)
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("d2ls_fast")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+source"

from d2ls_fast import nn, ops
from d2ls_fast.backends import BackendError, backend, backends
from d2ls_fast.errors import UserError
from d2ls_fast.models.checkpoint import ModelCard, load_checkpoint, save_checkpoint
from d2ls_fast.models.head import D2LSHead, D2LSOutput
from d2ls_fast.models.model import D2LS, create_model

__all__ = [
    "D2LS",
    "BackendError",
    "D2LSHead",
    "D2LSOutput",
    "ModelCard",
    "UserError",
    "__version__",
    "backend",
    "backends",
    "create_model",
    "load_checkpoint",
    "nn",
    "ops",
    "save_checkpoint",
]
