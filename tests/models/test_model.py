"""The whole model: sizes, modes, predict, options."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from d2ls_fast.errors import UserError
from d2ls_fast.models.head import D2LSOutput
from d2ls_fast.models.model import D2LS, create_model
from d2ls_fast.nn.losses import D2LSLoss

SMALL: dict[str, Any] = {"embed_dim": 32, "num_heads": 2, "stages": 1}


def small_model(backbone: str = "mobilenetv3_small_050", **options: Any) -> D2LS:
    torch.manual_seed(0)
    return create_model(backbone, 5, **{**SMALL, **options})


@pytest.mark.parametrize("size", [(32, 32), (33, 70), (64, 95)])
@pytest.mark.parametrize("backbone", ["convnext_atto", "mobilenetv3_small_050", "resnet18"])
def test_logits_have_exactly_the_size_of_the_images(backbone: str, size: tuple[int, int]) -> None:
    model = small_model(backbone, in_chans=4).eval()
    with torch.no_grad():
        logits = model(torch.randn(1, 4, *size))
    assert logits.shape == (1, 5, *size) and logits.dtype is torch.float32


def test_training_output() -> None:
    out = small_model()(torch.randn(2, 3, 40, 48))
    assert isinstance(out, D2LSOutput)
    assert out.logits.shape == (2, 5, 40, 48)
    assert out.aux_logits is not None and out.aux_logits.shape == (2, 5, 40, 48)
    assert out.contrastive is not None
    out.logits.mean().backward()


def test_training_without_logits_fits_images_that_were_padded() -> None:
    model = small_model(stages=2, intermediate=True)
    images, target = torch.randn(2, 3, 40, 45), torch.randint(0, 5, (2, 40, 45))
    model.backbone.eval()
    kept, out = model(images), model(images, keep_logits=False)
    assert isinstance(out, D2LSOutput) and out.logits.shape == out.aux_logits.shape == (2, 5, 40, 45)
    assert not isinstance(out.logits, torch.Tensor)
    torch.testing.assert_close(out.logits.logits(), kept.logits)
    assert [stage.shape for stage in out.intermediate] == [(2, 5, 40, 45)] * 2 and out.grid == (16, 16)
    loss = D2LSLoss(intermediate_weight=1.0, contrastive="pixels")
    torch.testing.assert_close(loss(out, target), loss(kept, target))
    with torch.no_grad():
        assert model.eval()(images, keep_logits=False).shape == (2, 5, 40, 45)


def test_padding_changes_nothing_where_none_is_needed() -> None:
    model, images = small_model().eval(), torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(images), model.head(model.backbone(images)).logits)


def test_predict_is_the_argmax_in_evaluation_mode() -> None:
    model, images = small_model(), torch.randn(2, 3, 50, 36)
    model.backbone.eval()
    modes = [m.training for m in model.modules()]
    labels, confidence = model.predict(images, return_confidence=True)
    assert [m.training for m in model.modules()] == modes
    probability = model.eval()(images).softmax(1)
    assert torch.equal(labels.long(), probability.argmax(1)) and labels.dtype is torch.uint8
    torch.testing.assert_close(confidence, probability.amax(1))
    assert torch.equal(model.predict(images), labels)


def test_config_rebuilds_the_model() -> None:
    model = small_model(prototypes=2, alternating=False)
    rebuilt = create_model(**model.config)
    rebuilt.load_state_dict(model.state_dict())
    assert rebuilt.config == model.config


@pytest.mark.parametrize(
    ("shape", "message"), [((1, 3, 31, 64), "31 x 64"), ((1, 4, 64, 64), r"\[B, 3, H, W\]"), ((3, 64, 64), r"\[B, 3,")]
)
def test_wrong_images_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_model().eval()(torch.randn(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": 2}, "option 'stage' is unknown; did you mean stages"),
        ({"num_heads": 5}, "num_heads must divide the attention width 16"),
        ({"prototypes": 0}, "prototypes must be at least 1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_model(**options)
    with pytest.raises(UserError, match="num_classes must be at least 1"):
        create_model("mobilenetv3_small_050", 0, **SMALL)
