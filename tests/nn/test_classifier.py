"""The classifier against the published sequence of image operations, and predict() against argmax."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d2ls_fast.nn.classifier import PixelClassifier
from d2ls_fast.ops import _classify


def published(layer: PixelClassifier, pixels: Tensor, dictionary: Tensor, grid: tuple[int, int]) -> Tensor:
    image = F.pixel_shuffle(pixels.transpose(1, 2).unflatten(2, grid), 2)
    image = layer.norm(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    image = F.gelu(F.pixel_shuffle(F.gelu(image), 2))
    first, second, third = layer.hypernetwork
    vectors = third(F.relu(second(F.relu(first(dictionary)))))
    return torch.einsum("bkc,bchw->bkhw", vectors, image)


def case(classes: int, prototypes: int = 1, **options: object) -> tuple[PixelClassifier, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = PixelClassifier(classes, 32, prototypes, **options).double()  # type: ignore[arg-type]
    return layer, torch.randn(2, 15, 32).double(), torch.randn(2, classes * prototypes, 32).double()


def test_logits() -> None:
    layer, pixels, dictionary = case(4)
    torch.testing.assert_close(layer(pixels, dictionary, (3, 5)), published(layer, pixels, dictionary, (3, 5)))


@pytest.mark.parametrize(
    ("name", "reduction"), [("logsumexp", torch.logsumexp), ("max", torch.amax), ("mean", torch.mean)]
)
def test_prototypes(name: str, reduction: object) -> None:
    layer, pixels, dictionary = case(3, 2, prototype_reduction=name)
    every = published(layer, pixels, dictionary, (3, 5)).view(2, 3, 2, 12, 20)
    torch.testing.assert_close(layer(pixels, dictionary, (3, 5)), reduction(every, 2))  # type: ignore[operator]


def test_scores_become_what_is_asked_of_them() -> None:
    layer, pixels, dictionary = case(3, 2, prototype_reduction="mean")
    scores = layer.scores(pixels, dictionary, (3, 5))
    logits = layer(pixels, dictionary, (3, 5))
    assert scores.shape == logits.shape and torch.equal(scores.logits(), logits)
    part = scores.cropped((10, 17))
    assert part.shape == (2, 3, 10, 17) and torch.equal(part.logits(), logits[..., :10, :17])
    labels, confidence = part.labels(return_confidence=True)
    assert torch.equal(labels.long(), part.logits().argmax(1)) and confidence is not None
    assert part.labels()[1] is None


@pytest.mark.parametrize("prototypes", [1, 3])
@pytest.mark.parametrize("size", [(12, 20), (9, 17)])
def test_predict_in_bands(size: tuple[int, int], prototypes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_classify, "_CHUNK_SCORES", 16 * 5 * 4 * prototypes * 2)  # two rows a band: bands of 2 and 1
    layer, pixels, dictionary = case(4, prototypes)
    labels, confidence = layer.predict(pixels, dictionary, (3, 5), size)
    probability = layer(pixels, dictionary, (3, 5)).softmax(1)[..., : size[0], : size[1]]
    best, wanted = probability.max(1)
    assert labels.dtype is torch.uint8 and confidence.dtype is torch.float32
    assert torch.equal(labels.long(), wanted)
    torch.testing.assert_close(confidence, best.float())


def test_labels_beyond_a_byte() -> None:
    layer, pixels, dictionary = case(300)
    labels, _ = layer.predict(pixels, dictionary, (3, 5), (12, 20))
    assert labels.dtype is torch.int16
    assert torch.equal(labels.long(), layer(pixels, dictionary, (3, 5)).argmax(1))


def test_logits_are_float32_in_half_precision() -> None:
    layer, pixels, dictionary = case(4)
    assert layer.bfloat16()(pixels.bfloat16(), dictionary.bfloat16(), (3, 5)).dtype is torch.float32


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        PixelClassifier(3, 24)
    with pytest.raises(ValueError, match="prototype_reduction must be one of logsumexp, max, mean"):
        PixelClassifier(3, 32, 2, "sum")  # type: ignore[arg-type]
