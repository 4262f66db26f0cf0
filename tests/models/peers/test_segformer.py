"""The Mix Transformer and its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from d2ls_fast.errors import UserError
from d2ls_fast.models.build import build_model
from d2ls_fast.models.peers import segformer
from d2ls_fast.models.peers.segformer import MixTransformer

SMALL = {"hidden_sizes": (8, 16, 20, 32), "depths": (1, 1, 1, 1)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SegFormer as Hugging Face publishes it, and ``mit_b0`` made as small."""
    monkeypatch.setitem(segformer.MIX_TRANSFORMERS, "mit_b0", SMALL)
    torch.manual_seed(0)
    SegformerForSemanticSegmentation(SegformerConfig(num_labels=4, decoder_hidden_size=16, **SMALL)).save_pretrained(
        tmp_path
    )
    return tmp_path


def test_the_published_size_of_the_smallest() -> None:
    net = MixTransformer("mit_b0")
    assert sum(p.numel() for p in net.parameters()) == 3_319_392  # 3.3 M in the paper, of SegFormer-B0's 3.7 M
    with torch.no_grad():
        assert [m.shape[1:] for m in net.eval()(torch.zeros(1, 3, 64, 96))] == [
            (32, 16, 24),
            (64, 8, 12),
            (160, 4, 6),
            (256, 2, 3),
        ]


def test_published_weights_are_taken_from_a_folder_or_file(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = torch.randn(1, 3, 64, 64)
    whole = SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    capfd.readouterr()
    for path in (folder, folder / "model.safetensors"):
        model = build_model("mit_b0", 2, name="segformer", pretrained=path, embed_dim=16).eval()
        with torch.no_grad():
            torch.testing.assert_close(
                model.backbone(images)[3], whole.segformer(images).last_hidden_state, rtol=0, atol=0
            )
    assert capfd.readouterr() == ("", "")


def test_rgb_weights_are_spread_over_other_bands(folder: Path) -> None:
    rgb, six = MixTransformer("mit_b0", 3, folder).eval(), MixTransformer("mit_b0", 6, folder).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(six(torch.cat((image, image), 1))[3], rgb(image)[3], rtol=1e-4, atol=1e-5)


def test_weights_of_another_model_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"model\.safetensors: holds no .* fits mit_b1"):
        MixTransformer("mit_b1", 3, folder)
    state = load_file(folder / "model.safetensors")
    save_file({key: value for key, value in state.items() if "block.0" not in key}, folder / "part.safetensors")
    with pytest.raises(UserError, match=r"part\.safetensors: holds no"):
        MixTransformer("mit_b0", 3, folder / "part.safetensors")
    with pytest.raises(UserError, match="no such weight file"):
        MixTransformer("mit_b0", 3, folder / "missing.safetensors")
