"""Mask2Former's scores and its set loss."""

from __future__ import annotations

import torch
from transformers import Mask2FormerConfig

from d2ls_fast.models.build import build_model
from d2ls_fast.models.peers.mask2former import Mask2Former, QueryOutput, SetLoss


def perfect(target: torch.Tensor, classes: int, queries: int = 5, layers: int = 2) -> QueryOutput:
    """Query k says class k with the mask of its pixels; the rest say that there is nothing."""
    logits = torch.full((len(target), queries, classes + 1), -12.0)
    logits[..., classes] = 12.0
    masks = torch.full((len(target), queries, *target.shape[1:]), -12.0)
    for b, labels in enumerate(target):
        for k in labels.unique().tolist():
            if k != 255:
                logits[b, k, k], logits[b, k, classes] = 12.0, -12.0
                masks[b, k][labels == k] = 12.0
    return QueryOutput((logits,) * layers, (masks,) * layers)


def test_the_loss_of_a_perfect_answer_is_nothing_and_of_a_wrong_one_is_much() -> None:
    torch.manual_seed(0)
    target = torch.zeros(2, 64, 64, dtype=torch.int64)
    target[0, :, 32:] = 1
    loss = SetLoss(Mask2FormerConfig(num_labels=3))
    total, terms = loss(perfect(target, 3), target)
    # Not zero: three quarters of the points are drawn where the masks are uncertain, which is along their edges.
    assert float(total) < 3 and set(terms) == {"cross_entropy", "mask", "dice", "auxiliary"}
    # A second, equal layer costs what the first one costs, but for the points that are drawn.
    torch.testing.assert_close(terms["auxiliary"], total - terms["auxiliary"], rtol=0.1, atol=0)
    assert float(loss(perfect(1 - target, 3), target)[0]) > 30


def test_ignored_pixels_are_no_class_and_an_image_without_labels_takes_no_part() -> None:
    target = torch.zeros(2, 64, 64, dtype=torch.int64)
    target[:, :, 32:] = 1
    target[0, :8] = 255
    loss, output = SetLoss(Mask2FormerConfig(num_labels=3)), perfect(target, 3)
    torch.manual_seed(0)
    alone, _ = loss(QueryOutput(*(tuple(layer[:1] for layer in part) for part in output)), target[:1])
    empty = target.clone()
    empty[1] = 255
    torch.manual_seed(0)
    together, _ = loss(output, empty)
    torch.testing.assert_close(together, alone)


def test_masks_are_compared_in_the_padded_frame() -> None:
    """Images of 48 x 48 are padded to 64 x 64 by repeating the edge, and so are their labels."""
    target = torch.zeros(1, 48, 48, dtype=torch.int64)
    target[:, :, 24:] = 1
    padded = torch.zeros(1, 64, 64, dtype=torch.int64)
    padded[:, :, 24:] = 1
    stretched = torch.zeros(1, 64, 64, dtype=torch.int64)
    stretched[:, :, 32:] = 1
    torch.manual_seed(0)
    loss = SetLoss(Mask2FormerConfig(num_labels=2))
    assert float(loss(perfect(padded, 2), target)[0]) < 3
    assert float(loss(perfect(stretched, 2), target)[0]) > 10


def test_scores_are_the_queries_classes_weighed_by_their_masks() -> None:
    torch.manual_seed(0)
    model = build_model("mobilenetv3_small_050", 2, name="mask2former", embed_dim=32).eval()
    assert isinstance(model, Mask2Former)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        output = model.head(model.backbone(images))
        scores = torch.einsum("bqk,bqhw->bkhw", output.classes[-1].softmax(-1)[..., :2], output.masks[-1].sigmoid())
        expected = torch.nn.functional.interpolate(scores, size=(64, 64), mode="bilinear").log()
        torch.testing.assert_close(model(images), expected)
        assert len(output.classes) == len(output.masks) == 10
