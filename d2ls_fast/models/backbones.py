"""Backbones from timm: four maps at strides 4, 8, 16 and 32, any number of bands, any size, usable offline."""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from timm.models import split_model_name_tag
from torch import Tensor, nn

from d2ls_fast.errors import UserError
from d2ls_fast.models.weights import read_state_dict

STRIDES = (4, 8, 16, 32)
_timm_logger = logging.getLogger("timm")


class Backbone(nn.Module):
    """A timm model that gives the four maps D2LS needs.

    Args:
        name: timm model name, with or without a pretrained tag.
        in_chans: bands of the input; pretrained RGB weights are spread over them (timm's inflation).
        pretrained: False, True (timm downloads) or the path of a local weight file: .safetensors or a PyTorch file,
            the classifier it came with included or not. A file with other key names is taken when count, order and
            shapes of its tensors are those of the timm model.

    Attributes:
        channels: of the four maps, finest first.
        input_mean, input_std: what the pretrained weights expect an 8-bit RGB image to be normalised with, in 0..255.

    Raises:
        UserError: unknown name, unsuitable architecture, or weights that are missing, damaged or of another model.
    """

    def __init__(self, name: str, in_chans: int = 3, pretrained: bool | str | Path = False) -> None:
        super().__init__()
        if in_chans < 1:
            raise UserError(f"in_chans must be at least 1, got {in_chans}; give the number of bands of the images")
        if not timm.is_model(name):
            raise UserError(f"backbone {name!r} is not a timm model; {nearest(name, timm.list_models())}")
        options = _size_options(name)
        by_order = False
        if pretrained is True:
            self.net = _download(name, in_chans, options)
        elif pretrained is False:
            self.net = _create(name, in_chans, False, options)
        else:
            self.net, by_order = _create_from_file(name, in_chans, Path(pretrained), options)
        info: Any = self.net.feature_info
        strides = list(info.reduction())
        missing = [stride for stride in STRIDES if stride not in strides]
        if missing:
            raise UserError(
                f"backbone {name!r} gives feature maps at strides {strides}; D2LS needs 4, 8, 16 and 32:"
                " choose a pyramid such as convnext_tiny, swin_tiny_patch4_window7_224 or resnet50"
            )
        # The last map of a stride is the deepest one.
        self.indices = [len(strides) - 1 - strides[::-1].index(stride) for stride in STRIDES]
        channels = info.channels()
        self.channels = [int(channels[index]) for index in self.indices]
        self.in_chans = in_chans
        self.name = name
        self.channels_last = str(getattr(self.net, "output_fmt", "NCHW")).endswith("NHWC")
        self.input_mean, self.input_std = _normalisation(name, _pretrained_config(self.net), by_order)

    def forward(self, images: Tensor) -> list[Tensor]:
        """``[B, in_chans, H, W]``, H and W multiples of 32 -> four maps ``[B, c_i, H / s_i, W / s_i]``."""
        maps: Sequence[Tensor] = self.net(images)
        chosen = [maps[index] for index in self.indices]
        return [m.permute(0, 3, 1, 2) for m in chosen] if self.channels_last else chosen


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint that names the closest of the ``known`` names."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known names start with {', '.join(known[:8])}"


def _size_options(name: str) -> dict[str, Any]:
    """Arguments that let a model of fixed input size take any size.

    Swin's windows are also told to shift at every resolution: by default the last stage would not, because at the
    nominal size it is a single window.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.fixed_input_size:
        return {}
    if split_model_name_tag(name)[0].startswith(("swin_", "swinv2_")) and not name.startswith("swinv2_cr"):
        return {"dynamic_img_size": True, "always_partition": True}
    return {"dynamic_img_size": True}


def _create(name: str, in_chans: int, pretrained: bool, options: dict[str, Any], **weights: Any) -> nn.Module:
    try:
        return timm.create_model(
            name, pretrained=pretrained, features_only=True, in_chans=in_chans, **options, **weights
        )
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        raise UserError(
            f"backbone {name!r} takes images of one size only; choose one that takes any, such as convnext_tiny"
        ) from None
    except (RuntimeError, AttributeError) as error:
        if pretrained:
            raise
        # timm's ways to say that an architecture has no feature pyramid.
        raise UserError(
            f"backbone {name!r} gives no feature maps ({error}); choose one such as convnext_tiny"
        ) from None


def _download(name: str, in_chans: int, options: dict[str, Any]) -> nn.Module:
    try:
        return _create(name, in_chans, True, options)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"backbone {name!r}: timm has no pretrained weights or cannot fetch them ({reason});"
            " set pretrained to false or to a local weight file"
        ) from None


def _create_from_file(name: str, in_chans: int, path: Path, options: dict[str, Any]) -> tuple[nn.Module, bool]:
    """The feature network with the file's weights, and whether their names had to be matched by order."""
    state = read_state_dict(path)
    state, by_order = _with_timm_names(name, path, state, options)
    level = _timm_logger.level
    _timm_logger.setLevel(logging.ERROR)  # it would warn of the classifier, which a feature network has no use for
    try:
        net = _create(name, in_chans, True, options, pretrained_cfg_overlay={"state_dict": state})
    except RuntimeError as error:
        detail = str(error).strip().split("\n")[-1].strip()
        raise UserError(
            f"{path}: its weights do not fit backbone {name!r} ({detail}); name the model they are of"
        ) from None
    finally:
        _timm_logger.setLevel(level)
    _pretrained_config(net).pop("state_dict", None)  # the file's tensors would otherwise stay in memory
    return net, by_order


def _with_timm_names(
    name: str, path: Path, state: dict[str, Tensor], options: dict[str, Any]
) -> tuple[dict[str, Tensor], bool]:
    classifier = timm.create_model(name, pretrained=False, **options)
    features = _create(name, 3, False, options)
    convert = getattr(sys.modules[type(classifier).__module__], "checkpoint_filter_fn", None)
    converted = state if convert is None else _converted(convert, state, classifier)
    # timm's feature networks write "stages.0" as "stages_0".
    have = {key.replace("_", ".") for key in converted}
    missing = [key for key in features.state_dict() if key.replace("_", ".") not in have]
    if not missing:
        return state, False
    expected = classifier.state_dict()
    same = [
        (key, value)
        for (key, want), value in zip(expected.items(), state.values(), strict=False)
        if want.shape == value.shape
    ]
    if len(same) == len(expected) == len(state):
        return dict(same), True
    raise UserError(
        f"{path}: holds no {missing[0]!r}, which backbone {name!r} needs ({len(missing)} of"
        f" {len(features.state_dict())} weights are missing); name the model the file is of"
    )


def _converted(convert: Any, state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """What timm makes of other projects' names; a file its converter chokes on is left as it is."""
    try:
        result: dict[str, Tensor] = convert(dict(state), model)
    except (KeyError, RuntimeError, ValueError, IndexError, AttributeError):
        return state
    return result


def _pretrained_config(net: nn.Module) -> dict[str, Any]:
    config: Any = net.pretrained_cfg
    return config


def _normalisation(name: str, config: dict[str, Any], by_order: bool) -> tuple[list[float], list[float]]:
    if by_order and name.startswith("tf_efficientnet_lite"):
        # The TensorFlow originals, as such files carry them: (x - 127) / 128.
        return [127.0] * 3, [128.0] * 3
    mean, std = config.get("mean", (0.485, 0.456, 0.406)), config.get("std", (0.229, 0.224, 0.225))
    return [255.0 * value for value in mean], [255.0 * value for value in std]
