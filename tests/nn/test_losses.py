"""The segmentation losses: both means, ignored pixels, absent classes, weights."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d2ls_fast.models.head import D2LSHead
from d2ls_fast.nn.classifier import PixelClassifier, PixelScores
from d2ls_fast.nn.contrast import PixelDictionaryInfoNCE, labels_on_grid
from d2ls_fast.nn.diversity import prototype_diversity
from d2ls_fast.nn.losses import D2LSLoss
from d2ls_fast.nn.segmentation import dice_loss, soft_cross_entropy
from d2ls_fast.ops._segmentation import mean_cross_entropy


class Output(NamedTuple):
    logits: Tensor | PixelScores
    aux_logits: Tensor | PixelScores | None
    contrastive: Tensor | None


def case() -> tuple[Tensor, Tensor]:
    """Four classes, of which the last is absent; a fifth of the pixels is ignored."""
    torch.manual_seed(0)
    target = torch.randint(0, 3, (2, 6, 5))
    target[torch.rand(2, 6, 5) < 0.2] = 255
    return torch.randn(2, 4, 6, 5, requires_grad=True), target


def released_cross_entropy(logits: Tensor, target: Tensor, epsilon: float) -> Tensor:
    log_p, ignored = logits.log_softmax(1), (target == 255).unsqueeze(1)
    nll = -log_p.gather(1, target.unsqueeze(1).masked_fill(ignored, 0)).masked_fill(ignored, 0.0)
    smooth = -log_p.sum(1, keepdim=True).masked_fill(ignored, 0.0)
    return (1 - epsilon) * nll.mean() + epsilon / logits.shape[1] * smooth.mean()


def released_dice(logits: Tensor, target: Tensor, smooth: float) -> Tensor:
    p, labels = logits.log_softmax(1).exp().flatten(2), target.flatten(1)
    mask = labels != 255
    p = p * mask.unsqueeze(1)
    truth = F.one_hot(labels * mask, logits.shape[1]).permute(0, 2, 1) * mask.unsqueeze(1)
    score = (2 * (p * truth).sum((0, 2)) + smooth) / ((p + truth).sum((0, 2)) + smooth).clamp_min(1e-7)
    return ((1 - score) * (truth.sum((0, 2)) > 0)).mean()


def test_released_forms() -> None:
    logits, target = case()
    torch.testing.assert_close(
        soft_cross_entropy(logits, target, 0.05, compat="release"), released_cross_entropy(logits, target, 0.05)
    )
    torch.testing.assert_close(dice_loss(logits, target, 0.05, compat="release"), released_dice(logits, target, 0.05))


@pytest.mark.parametrize("keep_logits", [True, False])
def test_the_released_recipe_is_reproduced(keep_logits: bool) -> None:
    """Soft cross-entropy and dice of the dynamic scores, 0.4 times soft cross-entropy of the static ones."""
    head, maps, target = head_and_maps(contrastive=False)
    output = head(maps, keep_logits)
    got = D2LSLoss(compat="release")(output, target)[0]
    stored = head(maps)
    wanted = released_cross_entropy(stored.logits, target, 0.05) + released_dice(stored.logits, target, 0.05)
    wanted = wanted + 0.4 * released_cross_entropy(stored.aux_logits, target, 0.05)
    torch.testing.assert_close(got, wanted)
    parameters = list(head.parameters())
    pairs = zip(torch.autograd.grad(got, parameters), torch.autograd.grad(wanted, parameters), strict=True)
    for gradient, expected in pairs:
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_corrected_forms_are_means_over_what_is_there() -> None:
    logits, target = case()
    labelled = (target != 255).float().mean()
    torch.testing.assert_close(
        soft_cross_entropy(logits, target, 0.05), released_cross_entropy(logits, target, 0.05) / labelled
    )
    torch.testing.assert_close(dice_loss(logits, target), released_dice(logits, target, 0.05) * 4 / 3)


def test_class_weights_follow_torch() -> None:
    logits, target = case()
    weights = torch.tensor([1.0, 0.5, 4.0, 2.0])
    torch.testing.assert_close(
        soft_cross_entropy(logits, target, 0.1, weights),
        F.cross_entropy(logits, target, weights, ignore_index=255, label_smoothing=0.1),
    )


@pytest.mark.parametrize("compat", ["corrected", "release"])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0, 4.0]])
def test_a_crop_without_labels_gives_zero_loss_and_gradients(compat: str, weights: list[float] | None) -> None:
    logits = torch.randn(1, 4, 5, 5, requires_grad=True)
    output = Output(logits, logits * 2, None)
    total, _ = D2LSLoss(class_weights=weights, compat=compat)(output, torch.full((1, 5, 5), 255))  # type: ignore[arg-type]
    total.backward()
    assert total.item() == 0.0
    assert logits.grad is not None and torch.equal(logits.grad, torch.zeros_like(logits))


def test_total_is_the_weighted_sum_of_the_terms() -> None:
    logits, target = case()
    output = Output(logits, logits.detach() + 1.0, torch.tensor(0.3))
    loss = D2LSLoss(dice_weight=0.5, auxiliary_weight=0.4, contrastive_weight=0.1)
    total, terms = loss(output, target)
    assert set(terms) == {"cross_entropy", "dice", "auxiliary", "contrastive"}
    torch.testing.assert_close(total, torch.stack(list(terms.values())).sum())
    torch.testing.assert_close(terms["contrastive"], torch.tensor(0.03))
    torch.testing.assert_close(terms["dice"], 0.5 * dice_loss(logits, target).detach())
    assert output.aux_logits is not None
    torch.testing.assert_close(terms["auxiliary"], 0.4 * soft_cross_entropy(output.aux_logits, target, 0.05))
    assert not any(term.requires_grad for term in terms.values())


def test_weights_of_zero_leave_terms_out() -> None:
    logits, target = case()
    loss = D2LSLoss(dice_weight=0.0, auxiliary_weight=0.0, contrastive_weight=0.0)
    _, terms = loss(Output(logits, logits, torch.tensor(0.3)), target)
    assert set(terms) == {"cross_entropy"}
    assert set(D2LSLoss()(logits, target)[1]) == {"cross_entropy", "dice"}


@pytest.mark.parametrize("compat", ["corrected", "release"])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0, 4.0]])
def test_scores_and_their_logits_have_one_loss(compat: str, weights: list[float] | None) -> None:
    _, target = case()
    layer = PixelClassifier(4, 32, 2, "max")
    pixels, dictionary = torch.randn(2, 4, 32, requires_grad=True), torch.randn(2, 8, 32, requires_grad=True)
    scores = layer.scores(pixels, dictionary, (2, 2)).cropped((6, 5))
    leaves = [pixels, dictionary, *layer.parameters()]
    loss = D2LSLoss(class_weights=weights, compat=compat)  # type: ignore[arg-type]
    results = []
    for logits in (scores.logits(), scores):
        total, terms = loss(Output(logits, logits, None), target)
        results.append((list(terms), [total, *terms.values(), *torch.autograd.grad(total, leaves, retain_graph=True)]))
    assert results[0][0] == results[1][0] == ["cross_entropy", "dice", "auxiliary"]
    for logits_result, scores_result in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(scores_result, logits_result)
    for option in ("dice_weight", "auxiliary_weight"):
        without = D2LSLoss(class_weights=weights, compat=compat, **{option: 0.0})  # type: ignore[arg-type]
        assert list(without(Output(scores, scores, None), target)[1]) == list(
            without(Output(scores.logits(), scores.logits(), None), target)[1]
        )
    torch.testing.assert_close(D2LSLoss()(scores, target)[0], D2LSLoss()(scores.logits(), target)[0])


CHANNELS = [8, 8, 12, 16]


def head_and_maps(**options: Any) -> tuple[D2LSHead, list[Tensor], Tensor]:
    """Two stages, four classes, two images of 32 x 32 pixels, of which a part is unlabelled."""
    torch.manual_seed(0)
    head = D2LSHead(CHANNELS, 4, embed_dim=32, num_heads=2, stages=2, **options)
    target = torch.randint(0, 3, (2, 32, 32))
    target[:, :5] = 255
    return head, [torch.randn(2, c, 8 // 2**i, 8 // 2**i) for i, c in enumerate(CHANNELS)], target


def test_every_combination_of_switches_trains_on_what_is_there() -> None:
    for dynamic, auxiliary, ratio, intermediate in itertools.product((True, False), repeat=4):
        head, maps, target = head_and_maps(
            dynamic=dynamic, auxiliary=auxiliary, contrastive=ratio, intermediate=intermediate
        )
        outputs = [head(maps, keep_logits) for keep_logits in (True, False)]
        for dice, weight, contrastive in itertools.product((0.0, 1.0), (0.0, 0.4), ("ratio", "pixels", "none")):
            loss = D2LSLoss(
                dice_weight=dice,
                auxiliary_weight=weight,
                intermediate_weight=weight,
                contrastive=contrastive,  # type: ignore[arg-type]
                contrastive_weight=weight,
            )
            expected = {
                "cross_entropy": True,
                "dice": dice,
                "auxiliary": weight and auxiliary and dynamic,
                "intermediate": weight and intermediate,
                "contrastive": weight and (contrastive == "pixels" or (contrastive == "ratio" and ratio and dynamic)),
            }
            stored, fused = (loss(output, target) for output in outputs)
            assert list(fused[1]) == [name for name, there in expected.items() if there]
            assert all(term > 0 for term in fused[1].values())
            torch.testing.assert_close(fused, stored)


def test_intermediate_term_is_the_mean_over_the_stages() -> None:
    head, maps, target = head_and_maps(intermediate=True)
    output = head(maps)
    pixels = head.neck(maps)
    result = head.interaction.run(pixels, head.positions(8, 8), head.dictionary.dynamic(maps[-1]), keep_pixels=True)
    states = zip(result.stage_pixels, result.stage_dictionaries, strict=True)
    stages = [head.classifier(x, dictionary, (8, 8)) for x, dictionary in states]
    torch.testing.assert_close(list(output.intermediate), stages)
    wanted = torch.stack([soft_cross_entropy(stage, target, 0.05) for stage in stages]).mean()
    torch.testing.assert_close(D2LSLoss(intermediate_weight=0.3)(output, target)[1]["intermediate"], 0.3 * wanted)
    assert head.eval()(maps).intermediate == ()


def test_contrastive_term_between_pixels_and_dictionary() -> None:
    head, maps, target = head_and_maps(contrastive=False)
    output = head(maps, keep_logits=False)
    nce = PixelDictionaryInfoNCE(0.3, balanced=True, direction="both")
    _, terms = D2LSLoss(contrastive="pixels", contrastive_weight=0.5, nce=nce)(output, target)
    wanted = nce(output.pixels, output.dictionary, labels_on_grid(target))
    torch.testing.assert_close(terms["contrastive"], 0.5 * wanted)


def test_diversity_term_is_of_the_dictionary_that_classified() -> None:
    head, maps, target = head_and_maps(prototypes=3)
    output = head(maps, keep_logits=False)
    total, terms = D2LSLoss(diversity_weight=0.5)(output, target)
    torch.testing.assert_close(terms["diversity"], 0.5 * prototype_diversity(output.dictionary, 3).detach())
    torch.testing.assert_close(total.detach(), torch.stack(list(terms.values())).sum())
    assert "diversity" not in D2LSLoss()(output, target)[1]


@pytest.mark.parametrize("keep_logits", [True, False])
def test_scores_of_another_size_are_brought_to_the_targets(keep_logits: bool) -> None:
    head, maps, _ = head_and_maps(intermediate=True)
    output = head(maps, keep_logits=keep_logits)
    target = torch.randint(0, 4, (2, 50, 41))
    with pytest.raises(ValueError, match="do not fit"):
        D2LSLoss()(output, target)
    terms = D2LSLoss(align=True, intermediate_weight=0.5)(output, target)[1]
    logits = output.logits if isinstance(output.logits, torch.Tensor) else output.logits.logits()
    aligned = torch.nn.functional.interpolate(logits, size=(50, 41), mode="bilinear")
    torch.testing.assert_close(terms["cross_entropy"], soft_cross_entropy(aligned, target, 0.05).detach())
    assert {"auxiliary", "intermediate"} <= set(terms)


@pytest.mark.parametrize("compat", ["corrected", "release"])
@pytest.mark.parametrize("keep_logits", [True, False])
def test_no_label_gives_zero_for_every_term_that_needs_labels(compat: str, keep_logits: bool) -> None:
    """The ratio alone reads no labels."""
    head, maps, target = head_and_maps(intermediate=True)
    nce = PixelDictionaryInfoNCE(direction="both", balanced=True)
    loss = D2LSLoss(compat=compat, intermediate_weight=1.0, contrastive="pixels", nce=nce)  # type: ignore[arg-type]
    total, terms = loss(head(maps, keep_logits), torch.full_like(target, 255))
    (2.0**16 * total).backward()  # as a loss scaler does
    assert len(terms) == 5 and not any(terms.values()) and total.item() == 0.0
    gradients = [p.grad for p in head.parameters()]
    assert all(grad is not None and not grad.any() for grad in gradients)


def test_the_gradient_of_an_empty_sum_survives_a_loss_scaler() -> None:
    total = torch.zeros((), requires_grad=True)
    (2.0**16 * mean_cross_entropy(total, torch.zeros(()), 10, "corrected")).backward()
    assert total.grad is not None and total.grad.isfinite()


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits, target = case()
    total, _ = D2LSLoss()(logits.bfloat16(), target)
    assert total.dtype is torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothing": 1.0}, "smoothing"),
        ({"auxiliary_weight": -1.0}, "auxiliary_weight must not be negative"),
        ({"class_weights": [1.0, -1.0]}, r"class_weights\[1\]"),
        ({"compat": "old"}, "compat must be one of corrected, release"),
        ({"contrastive": "all"}, "contrastive must be one of ratio, pixels, none"),
        ({"intermediate_weight": -0.1}, "intermediate_weight must not be negative"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        D2LSLoss(**options)  # type: ignore[arg-type]


def test_wrong_shapes_are_refused() -> None:
    logits, target = case()
    scores = PixelClassifier(4, 32).scores(torch.randn(2, 4, 32), torch.randn(2, 4, 32), (2, 2)).cropped((6, 5))
    for given in (logits, scores):
        with pytest.raises(ValueError, match="do not fit"):
            D2LSLoss()(given, target[:, :-1])
        with pytest.raises(ValueError, match="class_weights must hold 4 weights"):
            D2LSLoss(class_weights=[1.0])(given, target)
    with pytest.raises(ValueError, match=r"target must be \[2, 6, 5\] as the scores are"):
        scores.segmentation_loss(target[:, :-1])
