"""Scores against scikit-learn and torchmetrics, and the cases that these have no opinion on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as tm
from forked_runs import run_forked, score_a_half
from sklearn import metrics as sk

from d2ls_fast.training.metrics import ConfusionMatrix, scores_from_matrix


def draw(seed: int, classes: int, size: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Truth and predictions that are right in six of ten pixels."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, size)
    return truth, np.where(random.random(size) < 0.6, truth, random.integers(0, classes, size))


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_scikit_learn_and_torchmetrics_on_random_predictions(seed: int) -> None:
    classes = 2 + 2 * seed
    truth, guess = draw(seed, classes)
    matrix = ConfusionMatrix(classes)
    for part in range(0, 4000, 1000):  # batches of [2, 20, 25]
        cut = slice(part, part + 1000)
        shape = (2, 20, 25)
        matrix.update(
            torch.from_numpy(guess[cut].astype(np.uint8)).view(shape), torch.from_numpy(truth[cut]).view(shape)
        )
    scores = matrix.compute()

    labels = list(range(classes))
    np.testing.assert_array_equal(scores.matrix, sk.confusion_matrix(truth, guess, labels=labels))
    np.testing.assert_allclose(scores.iou, sk.jaccard_score(truth, guess, labels=labels, average=None))
    np.testing.assert_allclose(scores.f1, sk.f1_score(truth, guess, labels=labels, average=None))
    np.testing.assert_allclose(scores.precision, sk.precision_score(truth, guess, labels=labels, average=None))
    np.testing.assert_allclose(scores.recall, sk.recall_score(truth, guess, labels=labels, average=None))
    assert scores.mean_iou == pytest.approx(sk.jaccard_score(truth, guess, average="macro"))
    assert scores.mean_f1 == pytest.approx(sk.f1_score(truth, guess, average="macro"))
    assert scores.overall_accuracy == pytest.approx(sk.accuracy_score(truth, guess))

    given, wanted = torch.from_numpy(guess), torch.from_numpy(truth)
    np.testing.assert_array_equal(scores.matrix, tm.multiclass_confusion_matrix(given, wanted, classes))
    np.testing.assert_allclose(scores.iou, tm.multiclass_jaccard_index(given, wanted, classes, "none"), rtol=1e-5)
    np.testing.assert_allclose(scores.f1, tm.multiclass_f1_score(given, wanted, classes, average="none"), rtol=1e-5)
    np.testing.assert_allclose(
        scores.precision, tm.multiclass_precision(given, wanted, classes, average="none"), rtol=1e-5
    )
    np.testing.assert_allclose(scores.recall, tm.multiclass_recall(given, wanted, classes, average="none"), rtol=1e-5)
    assert scores.overall_accuracy == pytest.approx(float(tm.multiclass_accuracy(given, wanted, classes, "micro")))


def test_unlabelled_pixels_and_unseen_classes_are_treated_as_both_libraries_do() -> None:
    truth, guess = draw(9, 4)
    truth[::7] = 255  # and classes 4 and 5 are in neither
    scores = ConfusionMatrix(6)
    scores.update(torch.from_numpy(guess), torch.from_numpy(truth))
    found = scores.compute()
    kept = truth != 255
    assert found.mean_iou == pytest.approx(sk.jaccard_score(truth[kept], guess[kept], average="macro"))
    assert found.mean_f1 == pytest.approx(sk.f1_score(truth[kept], guess[kept], average="macro"))
    given, wanted = torch.from_numpy(guess), torch.from_numpy(truth)
    expected = tm.multiclass_jaccard_index(given, wanted, 6, average="macro", ignore_index=255)
    assert found.mean_iou == pytest.approx(float(expected), rel=1e-5)


def test_the_isprs_convention_keeps_clutter_in_the_matrix_and_the_accuracy_only() -> None:
    clutter = 5
    truth, guess = draw(3, 6)
    matrix = ConfusionMatrix(6, exclude=[clutter])
    matrix.update(torch.from_numpy(guess), torch.from_numpy(truth))
    scores = matrix.compute()
    named = [0, 1, 2, 3, 4]
    assert scores.mean_f1 == pytest.approx(sk.f1_score(truth, guess, labels=named, average="macro"))
    assert scores.mean_iou == pytest.approx(sk.jaccard_score(truth, guess, labels=named, average="macro"))
    assert scores.overall_accuracy == pytest.approx(sk.accuracy_score(truth, guess))
    np.testing.assert_array_equal(scores.matrix, sk.confusion_matrix(truth, guess))


def test_pixels_without_valid_truth_are_dropped() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 255, -1, 3, 1]))
    assert matrix.compute().matrix == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_ignore_index_inside_the_class_range_is_dropped() -> None:
    matrix = ConfusionMatrix(3, ignore_index=2)
    matrix.update(torch.tensor([0, 1, 2]), torch.tensor([0, 2, 2]))
    assert sum(map(sum, matrix.compute().matrix)) == 1


def test_classes_never_seen_are_left_out_of_the_means_and_missed_ones_count_as_zero() -> None:
    scores = scores_from_matrix([[8, 0, 0], [4, 0, 0], [0, 0, 0]])  # class 1 never predicted, class 2 never seen
    assert scores.iou[1] == scores.f1[1] == scores.precision[1] == scores.recall[1] == 0.0
    assert math.isnan(scores.iou[2]) and math.isnan(scores.f1[2])
    assert scores.mean_iou == pytest.approx((8 / 12 + 0) / 2)
    assert scores.overall_accuracy == pytest.approx(8 / 12)


def test_excluded_classes_leave_the_means_but_not_the_accuracy() -> None:
    matrix = ConfusionMatrix(3, exclude=[2])
    matrix.update(torch.tensor([0, 0, 1, 1, 0]), torch.tensor([0, 0, 1, 2, 2]))
    scores = matrix.compute()
    assert scores.mean_iou == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores.overall_accuracy == pytest.approx(3 / 5)
    assert scores.excluded == (2,)


def test_empty_matrix_has_no_scores() -> None:
    scores = ConfusionMatrix(2).compute()
    assert math.isnan(scores.mean_iou) and math.isnan(scores.overall_accuracy)
    assert scores.summary() == {}


def test_reset_forgets() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([1]), torch.tensor([0]))
    matrix.reset()
    assert matrix.compute().matrix == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("predicted", "target"), [([0, 1], [0]), ([5, 1], [0, 1])], ids=["shape", "prediction outside the classes"]
)
def test_wrong_predictions_are_refused(predicted: list[int], target: list[int]) -> None:
    with pytest.raises(ValueError):
        ConfusionMatrix(2).update(torch.tensor(predicted), torch.tensor(target))


@pytest.mark.parametrize(("classes", "exclude"), [(0, []), (2, [2])])
def test_wrong_construction_is_refused(classes: int, exclude: list[int]) -> None:
    with pytest.raises(ValueError):
        ConfusionMatrix(classes, exclude=exclude)


def test_counts_are_summed_over_processes_and_computing_twice_adds_nothing(tmp_path: Path) -> None:
    truth, guess = draw(4, 5)
    torch.save((torch.from_numpy(truth), torch.from_numpy(guess)), tmp_path / "pixels.pt")
    assert run_forked(score_a_half, tmp_path / "pixels.pt", processes=2) == [0, 0]
