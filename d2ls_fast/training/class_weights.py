"""Class weights from how often each class is labelled in the training masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

from d2ls_fast.data import DataSettings
from d2ls_fast.data.folder import Pair
from d2ls_fast.data.labels import MaskReader
from d2ls_fast.errors import UserError
from d2ls_fast.training.config import TrainSettings

Counts = npt.NDArray[np.int64]


def with_class_weights(settings: TrainSettings, pairs: Sequence[Pair], console: Console) -> TrainSettings:
    """``settings`` with ``loss.class_weights: frequencies`` replaced by the weights; unchanged where not asked for.

    Args:
        pairs: the images and masks that training sees.
        console: where progress and the weights are shown.

    Raises:
        UserError: a mask that cannot be read, or masks without any label.
    """
    if settings.loss.class_weights != "frequencies":
        return settings
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("counting classes", total=len(pairs))
        counts = class_counts(settings.data, pairs, lambda: bar.advance(task))
    if not counts.any():
        raise UserError("loss.class_weights=frequencies: no pixel of the training masks is labelled; give numbers")
    weights = [float(f"{weight:.6g}") for weight in frequency_weights(counts, settings.loss.frequency_form)]
    named = zip(settings.data.class_names, weights, strict=True)
    console.print("class weights: " + ", ".join(f"{name} {weight:.3g}" for name, weight in named), highlight=False)
    return settings.model_copy(update={"loss": settings.loss.model_copy(update={"class_weights": weights})})


def class_counts(settings: DataSettings, pairs: Sequence[Pair], progress: Callable[[], None] | None = None) -> Counts:
    """Labelled pixels of every class in the mask of every pair, ``[masks, K]``, as stored: before any resampling.

    Raises:
        UserError: a mask that cannot be read.
    """
    reader, classes = MaskReader(settings), len(settings.class_names)
    counts = np.zeros((len(pairs), classes), np.int64)
    for row, pair in zip(counts, pairs, strict=True):
        labels = reader.read(pair.mask)[: pair.height, : pair.width]
        row += np.bincount(labels.ravel(), minlength=256)[:classes]
        if progress is not None:
            progress()
    return counts


def frequency_weights(counts: Counts, form: Literal["median", "inverse"]) -> list[float]:
    r"""One weight per class; classes labelled less often get larger ones, a class that is nowhere labelled gets 0.

    With :math:`n_{ik}` the pixels of class k in mask i:

    - ``median`` (median frequency balancing): :math:`f_k = \sum_i n_{ik} / \sum_{i: n_{ik} > 0} \sum_j n_{ij}`, the
      share of k in the masks that hold it, and :math:`w_k = \mathrm{median}_j(f_j) / f_k`;
    - ``inverse``: :math:`f_k = \sum_i n_{ik} / \sum_{ij} n_{ij}`, the share of k in all labelled pixels, and
      :math:`w_k = 1 / (K f_k)` with K the classes that are labelled somewhere: the mean weight of a pixel is 1.

    Args:
        counts: n, ``[masks, K]``.
        form: which formula.

    Source: ``median``: Eigen and Fergus (ICCV 2015), section 6.3.
    """
    pixels = counts.sum(0).astype(np.float64)
    present = pixels > 0
    if form == "median":
        holding = ((counts > 0) * counts.sum(1, keepdims=True)).sum(0)
        frequency = pixels[present] / holding[present]
        scale = float(np.median(frequency))
    else:
        frequency = pixels[present] / pixels.sum()
        scale = 1.0 / int(present.sum())
    weights = np.zeros(len(pixels))
    weights[present] = scale / frequency
    return weights.tolist()
