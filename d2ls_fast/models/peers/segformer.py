"""SegFormer: its own Mix Transformer or any timm backbone, and the all-MLP head.

Source: Xie et al., SegFormer (NeurIPS 2021), as ``transformers`` has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.models import adapt_input_conv
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerModel
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead
from transformers.utils import logging

from d2ls_fast.errors import UserError
from d2ls_fast.models.create_backbone import create_backbone
from d2ls_fast.models.peers.peer import Peer
from d2ls_fast.models.weights import read_state_dict

_NARROW, _WIDE = (32, 64, 160, 256), (64, 128, 320, 512)
MIX_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "mit_b0": {"hidden_sizes": _NARROW, "depths": (2, 2, 2, 2)},
    "mit_b1": {"hidden_sizes": _WIDE, "depths": (2, 2, 2, 2)},
    "mit_b2": {"hidden_sizes": _WIDE, "depths": (3, 4, 6, 3)},
    "mit_b3": {"hidden_sizes": _WIDE, "depths": (3, 4, 18, 3)},
    "mit_b4": {"hidden_sizes": _WIDE, "depths": (3, 8, 27, 3)},
    "mit_b5": {"hidden_sizes": _WIDE, "depths": (3, 6, 40, 3)},
}
"""The published sizes; heads, reductions and patches are the configuration's defaults."""


class MixTransformer(nn.Module):
    """SegFormer's own backbone.

    Args:
        name: a key of :data:`MIX_TRANSFORMERS`.
        in_chans: bands of the input; RGB weights are spread over them as timm does it.
        pretrained: False, or a file of Hugging Face weights (``model.safetensors`` of ``nvidia/mit-b0`` or of a whole
            SegFormer) or the folder that holds it. Nothing is downloaded and nothing of the file is run.

    Raises:
        UserError: weights that are missing, damaged or of another model.
    """

    def __init__(self, name: str, in_chans: int = 3, pretrained: bool | str | Path = False) -> None:
        super().__init__()
        if in_chans < 1:
            raise UserError(f"in_chans must be at least 1, got {in_chans}; give the number of bands of the images")
        config = SegformerConfig(num_channels=in_chans, **MIX_TRANSFORMERS[name])
        self.name, self.in_chans, self.channels = name, in_chans, list(config.hidden_sizes)
        if pretrained is True:
            raise UserError(
                f"model.pretrained=true: weights of {name} are not downloaded; give the path of its model.safetensors"
            )
        self.net = SegformerModel(config) if pretrained is False else _loaded(Path(pretrained), name, config)

    def forward(self, images: Tensor) -> list[Tensor]:
        """``[B, in_chans, H, W]`` -> four maps at strides 4, 8, 16, 32."""
        return list(self.net(images, output_hidden_states=True).hidden_states)


def _loaded(path: Path, name: str, config: SegformerConfig) -> SegformerModel:
    path = path / "model.safetensors" if path.is_dir() else path
    state = read_state_dict(path)
    for key, value in state.items():
        if value.ndim == 4 and value.shape[1] == 3 and value.shape[2] == config.patch_sizes[0]:  # the first patches
            state[key] = adapt_input_conv(config.num_channels, value)
    bars = logging.is_progress_bar_enabled()
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        net, report = SegformerModel.from_pretrained(
            None, config=config, state_dict=state, output_loading_info=True, ignore_mismatched_sizes=True
        )
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    wrong = sorted(report["missing_keys"]) or sorted(str(entry[0]) for entry in report["mismatched_keys"])
    if wrong:
        raise UserError(
            f"{path}: holds no {wrong[0]!r} that fits {name} ({len(wrong)} of {len(net.state_dict())} weights do not);"
            " name the model the file is of"
        )
    return net


def build(backbone: str, num_classes: int, in_chans: int, pretrained: bool | str | Path, embed_dim: int = 256) -> Peer:
    """SegFormer.

    Args:
        backbone: ``mit_b0`` .. ``mit_b5``, or a timm model with maps at strides 4, 8, 16 and 32.
        embed_dim: channels of the head (256 with mit_b0 and mit_b1, 768 with the larger ones in the paper).
    """
    kind = MixTransformer if backbone in MIX_TRANSFORMERS else create_backbone
    features: Any = kind(backbone, in_chans, pretrained)
    config = SegformerConfig(hidden_sizes=features.channels, decoder_hidden_size=embed_dim, num_labels=num_classes)
    arguments = {"backbone": backbone, "num_classes": num_classes, "in_chans": in_chans, "embed_dim": embed_dim}
    return Peer(features, SegformerDecodeHead(config), {"name": "segformer", **arguments})
