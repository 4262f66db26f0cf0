"""A backbone by name: timm's networks, or torchvision's as the D2LS release uses them."""

from __future__ import annotations

from pathlib import Path

from d2ls_fast.models.backbones import Backbone
from d2ls_fast.models.torchvision_backbones import PREFIX, TorchvisionBackbone


def create_backbone(
    name: str, in_chans: int = 3, pretrained: bool | str | Path = False
) -> Backbone | TorchvisionBackbone:
    """:class:`Backbone` ``name``, or with the prefix ``torchvision:`` a :class:`TorchvisionBackbone`.

    Raises:
        UserError: as these two.
    """
    kind = TorchvisionBackbone if name.startswith(PREFIX) else Backbone
    return kind(name, in_chans, pretrained)
