"""Mask decoders of the SAM family compute the same after patch()."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sam_decoders import FAMILY, Prompted, decoder, gradients, prompted, run
from torch import Tensor, nn
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from d2ls_fast.models.patching import patch, patch_report, unpatch


def error(got: Tensor, expected: Tensor) -> float:
    """Relative, by norm."""
    assert got.shape == expected.shape and got.dtype == expected.dtype
    return ((got.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)).item()


def assert_same_gradients(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        if name.endswith("k_proj.bias"):
            # It adds the same to all scores of a softmax: what either side finds is rounding.
            assert (
                max(got[name].norm(), gradient.norm()) <= 1e-5 * expected[name.removesuffix("bias") + "weight"].norm()
            )
        else:
            assert error(got[name], gradient) <= tolerance, name


@pytest.mark.parametrize("prompts", [1, 16, 64])
@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_masks_scores_and_gradients_of_prompts(name: str, prompts: int) -> None:
    module, inputs = decoder(name), prompted(name, prompts)
    for training in (False, True):
        module.train(training)
        expected, expected_gradients = gradients(module, inputs)
        patched = patch(copy.deepcopy(module))
        assert patch_report(patched).replaced == {"": "two_way", "transformer": "two_way"}
        found, found_gradients = gradients(patched, inputs)
        for output, wanted in zip(found, expected, strict=True):
            assert error(output, wanted) <= 1e-5
        assert_same_gradients(found_gradients, expected_gradients)


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_the_whole_family_at_the_real_width(name: str) -> None:
    module, inputs = decoder(name, channels=256, heads=8), prompted(name, 3, channels=256, edge=8)
    expected, expected_gradients = gradients(module, inputs)
    outputs, found_gradients = gradients(patch(module), inputs)
    assert not patch_report(module).left_alone
    for output, wanted in zip(outputs, expected, strict=True):
        assert error(output, wanted) <= 1e-5
    assert_same_gradients(found_gradients, expected_gradients)


@pytest.mark.parametrize(("images", "points"), [(2, 2), (1, 40), (2, 40)])
def test_several_images_and_many_points(images: int, points: int) -> None:
    """Each image with an encoding of its own; many points are cheaper in the projected form."""
    module, inputs = decoder("sam"), prompted("sam", 3, images=images, points=points)
    expected, expected_gradients = gradients(module, inputs)
    outputs, found_gradients = gradients(patch(module), inputs)
    for output, wanted in zip(outputs, expected, strict=True):
        assert error(output, wanted) <= 1e-5
    assert_same_gradients(found_gradients, expected_gradients)


def test_pixels_that_come_copied_or_expanded() -> None:
    transformer = decoder("sam2").transformer
    arguments = (torch.randn(1, 4, 5, 32), *(torch.randn(1, 32, 3, 4) for _ in range(2)), None)
    tokens, image, encoding, _ = arguments
    copied, fast = [each.repeat_interleave(4, 0) for each in (image, encoding)], patch(copy.deepcopy(transformer))
    expected = transformer(tokens, *copied, None)
    views = [image.expand(4, -1, -1, -1), encoding.expand(4, -1, -1, -1)]
    for pixels in (copied, views, [views[0], copied[1]], [copied[0], views[1]]):
        for output, wanted in zip(fast(tokens, *pixels, None), expected, strict=True):
            assert error(output, wanted) <= 1e-5


@pytest.mark.parametrize("argument", ["attention_similarity", "target_embedding"])
def test_calls_with_a_mask_or_a_target_are_the_models_own(argument: str) -> None:
    module, inputs = decoder("sam"), prompted("sam", 2)
    shape = (2, 4, 7, 30) if argument == "attention_similarity" else (1, 2, 7, 32)
    inputs.named[argument] = torch.randn(shape)
    with torch.no_grad():
        expected, outputs = run(module, inputs), run(patch(module), inputs)
    for output, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, wanted, rtol=0, atol=0)


def test_whole_model_and_what_its_blocks_return() -> None:
    torch.manual_seed(0)
    vision = SamVisionConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        output_channels=32,
        mlp_dim=16,
        global_attn_indexes=[0],
        window_size=2,
        num_pos_feats=16,
    )
    prompt = SamPromptEncoderConfig(hidden_size=32, image_size=32, patch_size=8)
    mask_decoder = SamMaskDecoderConfig(hidden_size=32, mlp_dim=32, iou_head_hidden_dim=32)
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=mask_decoder)
    model = SamModel(config).eval()
    given: dict[str, Any] = {
        "pixel_values": torch.randn(2, 3, 32, 32),
        "input_points": torch.rand(2, 3, 2, 2) * 32,
        "input_labels": torch.ones(2, 3, 2, dtype=torch.int64),
    }
    patched = patch(copy.deepcopy(model))
    with torch.no_grad():
        for options in ({}, {"output_attentions": True}):
            expected, found = model(**given, **options), patched(**given, **options)
            assert type(found) is type(expected) and list(found) == list(expected)
            assert error(found.pred_masks, expected.pred_masks) <= 1e-5
            assert error(found.iou_scores, expected.iou_scores) <= 1e-5
    for block, wanted in zip(found.mask_decoder_attentions, expected.mask_decoder_attentions, strict=True):
        torch.testing.assert_close(block, wanted, rtol=0, atol=0)


def test_autocast_keeps_types_and_precision() -> None:
    transformer = decoder("sam", channels=256, heads=8).transformer
    tokens, pixels = torch.randn(1, 3, 7, 256), torch.randn(2, 1, 256, 8, 8).expand(-1, 3, -1, -1, -1)
    with torch.no_grad():
        exact = copy.deepcopy(transformer).double()(tokens.double(), *pixels.double(), None)
        for dtype in (torch.float32, torch.bfloat16):  # of the pixels, as the encoder left them
            given = (tokens, *pixels.to(dtype), None)
            with torch.autocast("cpu", torch.bfloat16):
                expected, outputs = transformer(*given), patch(copy.deepcopy(transformer))(*given)
            for output, wanted, truth in zip(outputs, expected, exact, strict=True):
                assert output.dtype == wanted.dtype
                assert error(output.double(), truth) <= 2 * error(wanted.double(), truth) + 1e-3


def test_half_precision_models_keep_their_types() -> None:
    module, inputs = decoder("sam2").bfloat16(), prompted("sam2", 3)
    halves = {name: tensor.bfloat16() for name, tensor in inputs.leaves.items()}
    features = [each.bfloat16() for each in inputs.named["high_resolution_features"]]
    inputs = Prompted({**inputs.named, **halves, "high_resolution_features": features})
    with torch.no_grad():
        expected, outputs = run(module, inputs), run(patch(module), inputs)
    for output, wanted in zip(outputs, expected, strict=True):
        assert error(output, wanted) <= 5e-2


def test_compiles_in_one_graph() -> None:
    module, inputs = patch(decoder("sam")), prompted("sam", 3)
    expected, expected_gradients = gradients(module, inputs)
    outputs, found = gradients(torch.compile(module, fullgraph=True, backend="aot_eager"), inputs)
    for output, wanted in zip(outputs, expected, strict=True):
        assert error(output, wanted) <= 1e-6
    assert_same_gradients({name.removeprefix("_orig_mod."): each for name, each in found.items()}, expected_gradients)


def test_copies_are_patched_and_unpatch_gives_the_model_back() -> None:
    module, inputs = decoder("sam"), prompted("sam", 3)
    with torch.inference_mode():
        expected, keys = run(module, inputs), list(module.state_dict())
        patched = copy.deepcopy(patch(module))
        assert list(patched.state_dict()) == keys
        assert set(patch_report(patched).replaced) == {"", "transformer"}
        assert error(run(patched, inputs)[0], expected[0]) <= 1e-5
        restored = unpatch(patched)
        assert type(restored) is FAMILY["sam"][0] and not patch_report(restored).replaced
        for output, wanted in zip(run(restored, inputs), expected, strict=True):
            torch.testing.assert_close(output, wanted, rtol=0, atol=0)


def _without_bias(transformer: Any) -> None:
    transformer.layers[1].cross_attn_token_to_image.k_proj = nn.Linear(32, 16, bias=False)


def _with_dropout(transformer: Any) -> None:
    transformer.layers[0].cross_attn_image_to_token.drop = nn.Dropout(0.1)


def _with_another_part(transformer: Any) -> None:
    transformer.layers[0].gate = nn.Linear(32, 32)


def _with_another_norm(transformer: Any) -> None:
    transformer.layers[0].layer_norm4 = nn.Identity()


def _with_another_scale(transformer: Any) -> None:
    transformer.final_attn_token_to_image.scaling = 1.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without_bias, "layers.1.cross_attn_token_to_image has other parts"),
        (_with_dropout, "layers.0.cross_attn_image_to_token has other parts"),
        (_with_another_part, "layers.0 has the parts .*gate"),
        (_with_another_norm, "layers.0.layer_norm4 is no LayerNorm"),
        (_with_another_scale, "final_attn_token_to_image has 4 heads of a width 16 and scales by 1.0"),
    ],
)
def test_what_does_not_fit_is_left_alone_and_named(change: Any, reason: str) -> None:
    model = nn.ModuleDict({"good": decoder("sam"), "other": decoder("sam")})
    change(model["other"].transformer)
    with pytest.warns(UserWarning, match=f"other.transformer .two_way: {reason}"):
        patch(model)
    assert set(patch_report(model).replaced) == {"good", "good.transformer"}
    assert set(patch_report(model).left_alone) == {"other.transformer"}
