"""Test-time augmentation: every view is undone, the merge is the plain mean, and batching changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from d2ls_fast.errors import UserError
from d2ls_fast.inference.predictor import Predictor
from d2ls_fast.inference.tta import PRESETS, TTA
from d2ls_fast.models.build import PEER_OPTIONS, build_model
from d2ls_fast.models.checkpoint import ModelCard

PASSES = {"none": 1, "flips": 4, "flips-scales-8": 8, "flips-scales-16": 16, "flips-rot90-scales": 40}
UNSCALED = ("none", "flips")


class Linear(nn.Module):
    """Class scores are sums of multiples of the pixel's bands, in the same order of operations for every pixel."""

    weight = ((1.0, -0.7, 0.3), (-0.2, 0.9, 0.1), (0.4, 0.4, -1.1), (-0.8, 0.1, 0.6))

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        bands = images.unbind(1)
        return torch.stack([sum(w * b for w, b in zip(row, bands, strict=True)) for row in self.weight], 1)


class Neighbours(nn.Module):
    """Scores that depend on what lies around a pixel, and where: a small convolution plus the position."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.mix = nn.Conv2d(3, 4, 5, padding=2)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        rows, columns = torch.linspace(-1, 1, height)[:, None], torch.linspace(0, 2, width)
        return self.mix(images) + torch.stack(
            [rows + 0 * columns, 0 * rows + columns, rows * columns, 0 * rows * columns]
        )


def images(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(height + width))


def by_hand(model: nn.Module, batch: Tensor, preset: str, merge: str) -> Tensor:
    """The plain loop: one pass after another, all transforms written out."""
    scales = {"none": [1.0], "flips": [1.0], "flips-rot90-scales": [0.5, 0.75, 1.0, 1.25, 1.5]}
    found = []
    for scale in scales.get(preset, [0.75, 1.0, 1.25, 1.5]):
        for turns in (0, 1) if "rot90" in preset else (0,):
            for vertical in (False, True) if preset not in ("none", "flips-scales-8") else (False,):
                for horizontal in (False, True) if preset != "none" else (False,):
                    size = [round(side * scale) for side in batch.shape[-2:]]
                    seen = interpolate(batch, size=size, mode="bilinear", antialias=True)
                    seen = torch.rot90(seen, turns, (2, 3))
                    seen = seen.flip(2) if vertical else seen
                    seen = seen.flip(3) if horizontal else seen
                    scores = model(seen)
                    scores = scores.flip(3) if horizontal else scores
                    scores = scores.flip(2) if vertical else scores
                    scores = torch.rot90(scores, -turns, (2, 3))
                    scores = interpolate(scores, size=batch.shape[-2:], mode="bilinear")
                    found.append(scores if merge == "logits" else scores.softmax(1))
    mean = torch.stack(found).mean(0)
    return mean if merge == "logits" else mean.log()


def test_the_presets_have_the_passes_they_are_known_by() -> None:
    assert {name: TTA(name).passes for name in PRESETS} == PASSES
    for name, passes in PASSES.items():
        model = Linear()
        TTA(name)(model, images(64, 80, 3))
        assert sum(shape[0] for shape in model.shapes) == 3 * passes


def test_the_eight_orientations_are_all_different() -> None:
    image = torch.arange(9.0).view(1, 3, 3)
    seen = {tuple(view.apply(image).flatten().tolist()) for view in PRESETS["flips-rot90-scales"].views}
    assert len(seen) == 8


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(5, 3), (4, 4)])
def test_every_view_is_undone_exactly(preset: str, size: tuple[int, int]) -> None:
    """Position marks itself: what comes back is what went in."""
    marks = torch.arange(1.0 * size[0] * size[1]).view(1, *size)
    for view in PRESETS[preset].views:
        assert torch.equal(view.undo(view.apply(marks)), marks)


@pytest.mark.parametrize("merge", ["logits", "probabilities"])
@pytest.mark.parametrize("preset", UNSCALED)
@pytest.mark.parametrize("size", [(40, 40), (33, 57), (7, 90)])
def test_a_per_pixel_model_keeps_its_labels_bit_for_bit(preset: str, merge: str, size: tuple[int, int]) -> None:
    model, batch = Linear(), images(*size)
    scores = TTA(preset, merge)(model, batch)
    assert torch.equal(scores.argmax(1), model(batch).argmax(1))
    torch.testing.assert_close(scores.softmax(1), model(batch).softmax(1), rtol=0, atol=1e-6)


def test_quarter_turns_of_a_per_pixel_model_keep_its_labels_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "d4", PRESETS["flips-rot90-scales"]._replace(scales=(1.0,)))
    for size in ((40, 40), (33, 57)):
        model, batch = Linear(), images(*size)
        assert torch.equal(TTA("d4")(model, batch).argmax(1), model(batch).argmax(1))


@pytest.mark.parametrize("merge", ["logits", "probabilities"])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(64, 64), (65, 99)])
@torch.no_grad()
def test_merged_scores_are_those_of_the_plain_loop(preset: str, merge: str, size: tuple[int, int]) -> None:
    model, batch = Neighbours(), images(*size)
    expected = by_hand(model, batch, preset, merge)
    torch.testing.assert_close(TTA(preset, merge)(model, batch), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(48, 48), (39, 70)])
def test_batching_changes_nothing(preset: str, size: tuple[int, int]) -> None:
    batch = images(*size, count=3)
    results = []
    for limit in (1, 4, 1000):
        model = Linear()
        results.append(TTA(preset, batch=limit)(model, batch))
        assert max(shape[0] for shape in model.shapes) <= limit
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_views_of_equal_size_share_a_model_call() -> None:
    for size, calls in (((64, 64), [8] * 5), ((64, 80), [4] * 10)):
        model = Linear()
        TTA("flips-rot90-scales", batch=8)(model, images(*size, count=1))
        assert [shape[0] for shape in model.shapes] == calls
        assert model.shapes[0][-2:] == tuple(side // 2 for side in size)


def test_half_precision_scores_are_merged_in_single_precision() -> None:
    passes = iter([256.0, 1.0, 1.0, 1.0])
    half = TTA("flips", batch=1)(lambda seen: torch.full((1, 2, 32, 32), next(passes)).bfloat16(), images(32, 32, 1))
    assert half.dtype is torch.float32
    assert (half == 64.75).all()  # in bfloat16, 256 + 1 is 256


@pytest.mark.parametrize("name", ["d2ls", *PEER_OPTIONS])
@torch.no_grad()
def test_every_model_takes_every_preset(name: str) -> None:
    torch.manual_seed(0)
    model = build_model("mobilenetv3_small_050", num_classes=3, in_chans=5, name=name, embed_dim=32).eval()
    batch = torch.randn(1, 5, 45, 38)
    for preset, merge in (("flips-rot90-scales", "logits"), ("flips-scales-8", "probabilities")):
        scores = TTA(preset, merge)(model, batch)
        assert scores.shape == (1, 3, 45, 38) and scores.isfinite().all()


@pytest.mark.parametrize("size", [(5, 300), (33, 257), (64, 64)])
def test_a_scene_in_windows_keeps_the_labels_of_a_per_pixel_model(
    size: tuple[int, int], card: ModelCard, make_image: Any
) -> None:
    image = make_image(*size)
    plain = Predictor((Linear(), card), window=48, overlap=16).predict(image)
    for merge in ("logits", "probabilities"):
        model = Linear()
        predictor = Predictor((model, card), window=48, overlap=16, batch=3, tta="flips", tta_merge=merge)
        assert np.array_equal(predictor.predict(image), plain)
        assert max(shape[0] for shape in model.shapes) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("flip",), r"tta 'flip': no such preset; did you mean flips\?"),
        (("flips", "mean"), "tta merge 'mean': no such mean; take logits or probabilities"),
        (("flips", "logits", 0), "tta batch 0 must be at least 1"),
    ],
)
def test_wrong_options_are_refused(options: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TTA(*options)
