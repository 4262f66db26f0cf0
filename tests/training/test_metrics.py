"""Scores against scikit-learn, and the cases scikit-learn has no opinion on."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from d2ls_fast.training.metrics import ConfusionMatrix, scores_from_matrix


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_scikit_learn_on_random_predictions(seed: int) -> None:
    random = np.random.default_rng(seed)
    classes = int(random.integers(2, 9))
    truth = random.integers(0, classes, 4000)
    guess = np.where(random.random(4000) < 0.6, truth, random.integers(0, classes, 4000))
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


_COUNT_ONE_PIXEL = """
import sys, torch
from d2ls_fast.training.metrics import ConfusionMatrix
rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
matrix = ConfusionMatrix(2)
matrix.update(torch.tensor([rank]), torch.tensor([0]))
first, second = matrix.compute(), matrix.compute()
assert first.matrix == second.matrix == [[1, 1], [0, 0]], (first, second)
torch.distributed.destroy_process_group()
"""


def test_counts_are_summed_over_processes_and_computing_twice_adds_nothing(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen([sys.executable, "-c", _COUNT_ONE_PIXEL, str(rank), str(tmp_path / "rendezvous")])
        for rank in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
