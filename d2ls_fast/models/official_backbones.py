"""Backbone keys of the released D2LS implementation: torchvision's children by number, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from d2ls_fast.errors import UserError
from d2ls_fast.models.torchvision_backbones import ARCHITECTURES, TorchvisionBackbone

PREFIX = "backbone."
DEAD = (f"{PREFIX}1.weight", f"{PREFIX}1.bias")
"""Of Swin networks: the norm behind the last stage, which no tapped map has passed."""

# The release takes the ``features`` of these two, of the others all children but the classifier.
_FEATURES_ALONE = ("mobilenet_v3_large", "efficientnet_v2_m")


def official_name(backbone: TorchvisionBackbone, name: str) -> str:
    """The released key of ``name``, a key of the backbone's ``net``: ``features.1.0.x`` is ``backbone.0.1.0.x``."""
    child, _, rest = name.partition(".")
    if backbone.name.endswith(_FEATURES_ALONE):
        return PREFIX + rest
    number = [each for each, _ in backbone.net.named_children()].index(child)
    return f"{PREFIX}{number}.{rest}"


def is_dead(backbone: TorchvisionBackbone, key: str) -> bool:
    """Whether the released forward pass never uses the backbone weight ``key``."""
    return backbone.architecture.channels_last and key in DEAD


def recognise(state: Mapping[str, Tensor], origin: str) -> tuple[str, int]:
    """Name and bands of the backbone whose weights ``state`` (without Lightning's prefix) holds.

    The name is the one that shares most keys of equal shape with the file, bands aside: of a damaged file, too.

    Raises:
        UserError: no backbone of the release shares any.
    """
    held = {key: _shape(key, value.shape) for key, value in state.items() if key.startswith(PREFIX)}
    agreement = {name: _agreement(held, name) for name in ARCHITECTURES}
    name = max(agreement, key=agreement.__getitem__)
    if agreement[name] == 0:
        raise UserError(
            f"{origin}: no backbone of the D2LS release fits its keys ({', '.join(ARCHITECTURES)});"
            " give a whole released checkpoint, the backbone included"
        )
    return name, bands(state, name, origin)


def bands(state: Mapping[str, Tensor], name: str, origin: str) -> int:
    """Input bands of the backbone ``name`` in ``state`` (without Lightning's prefix).

    Raises:
        UserError: the weight of its first convolution is missing or is none.
    """
    key = next(iter(_expected(name)))
    if key not in state:
        raise UserError(f"{origin}: key {key!r} is missing; {name} begins with it, name the backbone it was trained on")
    if state[key].dim() != 4 or not state[key].shape[1]:
        raise UserError(f"{origin}: key {key!r} has shape {list(state[key].shape)}, a convolution's weight has four")
    return state[key].shape[1]


@cache
def _expected(name: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a released checkpoint's backbone; the first is the stem's weight."""
    with torch.device("meta"):
        backbone = TorchvisionBackbone(name)
    shapes = {official_name(backbone, key): tensor.shape for key, tensor in backbone.net.state_dict().items()}
    return {key: _shape(key, shape) for key, shape in shapes.items()}


def _shape(key: str, shape: torch.Size) -> tuple[int, ...]:
    """``shape``, but for the bands of a stem."""
    is_stem = key in ("backbone.0.0.0.weight", "backbone.0.0.weight", "backbone.0.weight") and len(shape) == 4
    return (shape[0], *shape[2:]) if is_stem else tuple(shape)


def _agreement(held: Mapping[str, tuple[int, ...]], name: str) -> float:
    """Shared keys of equal shape over all keys, in [0, 1]."""
    expected = _expected(name)
    shared = sum(held.get(key) == shape for key, shape in expected.items())
    return shared / len(set(held) | set(expected))
