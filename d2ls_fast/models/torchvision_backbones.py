"""torchvision's classification networks as backbones: those of the D2LS release, exactly as it uses them.

timm's networks of the same names differ in what a released checkpoint's features depend on: the window shifts of Swin
and SwinV2 on maps of a single window; EfficientNetV2-M's padding or normalisation constant and its last map, of 512
channels instead of 1280; stochastic depth while training. Here the modules are torchvision's own, so its weights and
the release's mean what they meant there.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from timm.models import adapt_input_conv
from torch import Tensor, nn
from torchvision.models import get_model

from d2ls_fast.errors import UserError
from d2ls_fast.models.backbones import nearest
from d2ls_fast.models.weights import fitting, put, read_state_dict

PREFIX = "torchvision:"


@dataclass(frozen=True)
class Architecture:
    """Where a network is tapped: indices of its blocks (of ``features``, or of a ResNet's children) and their channels.

    Maps of ``channels_last`` networks come as ``[B, H, W, C]``.
    """

    taps: tuple[int, int, int, int]
    channels: tuple[int, int, int, int]
    channels_last: bool = False


_STAGES = (1, 3, 5, 7)
_NARROW, _WIDE = (96, 192, 384, 768), (128, 256, 512, 1024)
ARCHITECTURES: dict[str, Architecture] = {
    "convnext_tiny": Architecture(_STAGES, _NARROW),
    "convnext_small": Architecture(_STAGES, _NARROW),
    "convnext_base": Architecture(_STAGES, _WIDE),
    "swin_b": Architecture(_STAGES, _WIDE, channels_last=True),
    "swin_v2_t": Architecture(_STAGES, _NARROW, channels_last=True),
    "swin_v2_s": Architecture(_STAGES, _NARROW, channels_last=True),
    "swin_v2_b": Architecture(_STAGES, _WIDE, channels_last=True),
    "resnet101": Architecture((4, 5, 6, 7), (256, 512, 1024, 2048)),
    "mobilenet_v3_large": Architecture((3, 6, 12, 16), (24, 40, 112, 960)),
    "efficientnet_v2_m": Architecture((2, 3, 5, 8), (48, 80, 176, 1280)),
}
"""The backbones of the D2LS release by torchvision's names. Source: its ``DynamicDictionaryLearning``."""


class TorchvisionBackbone(nn.Module):
    """A torchvision network without its classifier that gives the four maps D2LS needs.

    Args:
        name: a key of :data:`ARCHITECTURES`, with or without the prefix ``torchvision:``.
        in_chans: bands of the input; pretrained RGB weights are spread over them as timm does it.
        pretrained: False, True (torchvision downloads its ImageNet-1k weights) or the path of a local weight file
            with torchvision's names, the classifier included or not.

    Attributes:
        channels: of the four maps, finest first.
        net: the parts that the maps need, under torchvision's names.
        input_mean, input_std: what the pretrained weights expect an 8-bit RGB image to be normalised with, in 0..255.

    Raises:
        UserError: unknown name, or weights that are missing, damaged or of another model.
    """

    input_mean = (123.675, 116.28, 103.53)
    input_std = (58.395, 57.12, 57.375)

    def __init__(self, name: str, in_chans: int = 3, pretrained: bool | str | Path = False) -> None:
        super().__init__()
        if in_chans < 1:
            raise UserError(f"in_chans must be at least 1, got {in_chans}; give the number of bands of the images")
        self.architecture = architecture(name)
        self.name = PREFIX + name.removeprefix(PREFIX)
        self.in_chans, self.channels = in_chans, list(self.architecture.channels)
        model = _download(self.name) if pretrained is True else get_model(name.removeprefix(PREFIX), weights=None)
        children = list(model.named_children())
        # "features" alone, or what a ResNet has in front of its pooling.
        depth = 1 if children[0][0] == "features" else [child for child, _ in children].index("avgpool")
        self.net = nn.Sequential(OrderedDict(children[:depth]))
        self._adapt_stem(in_chans)
        if isinstance(pretrained, (str, Path)):
            self._load(Path(pretrained))

    @property
    def blocks(self) -> nn.Sequential:
        """What is run one after the other; :attr:`architecture` names the tapped ones."""
        return cast(nn.Sequential, getattr(self.net, "features", self.net))

    def forward(self, images: Tensor) -> list[Tensor]:
        """``[B, in_chans, H, W]``, H and W multiples of 32 -> four maps ``[B, c_i, H / s_i, W / s_i]``."""
        maps, x = [], images
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.architecture.taps:
                maps.append(x.permute(0, 3, 1, 2) if self.architecture.channels_last else x)
        return maps

    def _adapt_stem(self, in_chans: int) -> None:
        """Replace the first convolution by one for ``in_chans`` bands that goes on from its weights."""
        name, stem = next((name, each) for name, each in self.net.named_modules() if isinstance(each, nn.Conv2d))
        if stem.in_channels == in_chans:
            return
        options: dict[str, Any] = {key: getattr(stem, key) for key in ("kernel_size", "stride", "padding")}
        wider = nn.Conv2d(in_chans, stem.out_channels, bias=stem.bias is not None, **options)
        wider.weight.data = adapt_input_conv(in_chans, stem.weight.data)
        wider.bias = stem.bias
        self.net.set_submodule(name, wider)

    def _load(self, path: Path) -> None:
        state = read_state_dict(path)
        stem = next(iter(self.net.state_dict()))
        if stem in state and state[stem].dim() == 4 and state[stem].shape[1] == 3:
            state[stem] = adapt_input_conv(self.in_chans, state[stem])
        put(fitting(self.net, state, str, str(path), self.name, "name the model the file is of").values())


def architecture(name: str) -> Architecture:
    """The entry of ``name``, with or without the prefix.

    Raises:
        UserError: there is none.
    """
    bare = name.removeprefix(PREFIX)
    if bare not in ARCHITECTURES:
        known = list(ARCHITECTURES)
        raise UserError(f"backbone {name!r} is none of the D2LS release's ({', '.join(known)}); {nearest(bare, known)}")
    return ARCHITECTURES[bare]


def _download(name: str) -> nn.Module:
    try:
        return cast(nn.Module, get_model(name.removeprefix(PREFIX), weights="IMAGENET1K_V1"))
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"backbone {name!r}: torchvision cannot fetch its pretrained weights ({reason});"
            " set pretrained to false or to a local weight file"
        ) from None
