"""Networks by name: D2LS, and the peers it is compared with."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast, get_args

from d2ls_fast.errors import UserError
from d2ls_fast.models.backbones import nearest
from d2ls_fast.models.base import SegmentationModel
from d2ls_fast.models.model import create_model

ModelName = Literal["d2ls", "segformer", "upernet", "mask2former", "prototype"]

PEER_OPTIONS: dict[ModelName, tuple[str, ...]] = {
    "segformer": ("embed_dim",),
    "upernet": ("embed_dim", "auxiliary"),
    "mask2former": ("embed_dim", "num_heads"),
    "prototype": ("embed_dim",),
}
"""The options of each peer beside backbone, num_classes, in_chans and pretrained; D2LS's have the same meaning."""


def build_model(
    backbone: str,
    num_classes: int,
    in_chans: int = 3,
    pretrained: bool | str | Path = False,
    name: str = "d2ls",
    **options: Any,
) -> SegmentationModel:
    """Build the network ``name``: ``d2ls``, ``segformer``, ``upernet``, ``mask2former`` or ``prototype``.

    Args:
        backbone: a timm model with maps at strides 4, 8, 16 and 32, or ``torchvision:NAME`` for one that the D2LS
            release uses; SegFormer also takes its own, ``mit_b0`` .. ``mit_b5``.
        num_classes: K >= 1.
        in_chans: bands of the images.
        pretrained: False, or the path of a local file with the backbone's weights (True: timm downloads them).
        options: of D2LS (see :func:`~d2ls_fast.models.model.create_model`), or those in :data:`PEER_OPTIONS`.

    Raises:
        UserError: an unknown name or option, an unsuitable backbone, unusable weights, or ``transformers`` is missing.
    """
    if name == "d2ls":
        return create_model(backbone, num_classes, in_chans, pretrained=pretrained, **options)
    known = get_args(ModelName)
    if name not in known:
        raise UserError(f"model.name={name}: there is no such model; {nearest(name, known)}")
    if num_classes < 1:
        raise UserError(f"model options: num_classes must be at least 1, got {num_classes}")
    allowed = PEER_OPTIONS[cast(ModelName, name)]
    for option in options:
        if option not in allowed:
            raise UserError(f"model option {option!r} is unknown to {name}; {nearest(option, allowed)}")
    try:
        module = import_module(f"d2ls_fast.models.peers.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("d2ls_fast"):
            raise
        raise UserError(
            f"model.name={name}: needs the Python package {error.name}; pip install 'd2ls_fast[peers]'"
        ) from None
    try:
        return cast(SegmentationModel, module.build(backbone, num_classes, in_chans, pretrained, **options))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"model options: {error}") from None
