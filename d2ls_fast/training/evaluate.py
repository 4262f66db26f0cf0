"""Scores of a model on one split, during training and afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from d2ls_fast.data import Item
from d2ls_fast.errors import UserError
from d2ls_fast.inference.tta import TTA
from d2ls_fast.models.base import SegmentationModel, evaluating
from d2ls_fast.models.checkpoint import ModelCard
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.gallery import Gallery
from d2ls_fast.training.metrics import ConfusionMatrix, Scores


def evaluate_model(
    model: SegmentationModel,
    dataset: Dataset[Item],
    num_classes: int,
    exclude: Iterable[int] = (),
    device: str | torch.device = "cpu",
    precision: str = "32",
    workers: int = 0,
    progress: Callable[[], None] | None = None,
    gallery: Gallery | None = None,
    tta: TTA | None = None,
) -> Scores:
    """Predict every item of ``dataset`` whole, one by one, and score all pixels in one confusion matrix.

    Args:
        model: moved to ``device``.
        dataset: items ``{"image": float32 [bands, h, w], "label": int64 [h, w]}``, label 255 where there is no truth.
        exclude: class indices left out of the means.
        precision: "32", "bf16" or "fp16": the type under autocast.
        progress: called after every item.
        gallery: is shown every item with its prediction.
        tta: test-time augmentation; none by default.
    """
    matrix = ConfusionMatrix(num_classes, exclude=exclude)
    for item, labels in predictions(model, dataset, device, precision, workers, tta):
        matrix.update(labels, item["label"].to(device))
        if gallery is not None:
            gallery.add(item["image"][0], item["label"][0], labels[0].cpu(), item["name"][0])
        if progress is not None:
            progress()
    return matrix.compute()


def predictions(
    model: SegmentationModel,
    dataset: Dataset[Item],
    device: str | torch.device = "cpu",
    precision: str = "32",
    workers: int = 0,
    tta: TTA | None = None,
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Every item of ``dataset``, as a batch of one, with its predicted labels [1, h, w] on ``device``.

    Raises:
        UserError: the device ran out of memory under test-time augmentation.
    """
    model.to(device)
    for item in DataLoader(dataset, batch_size=1, num_workers=workers):
        with autocast(device, precision):
            images = item["image"].to(device)
            labels = model.predict(images) if tta is None or tta.passes == 1 else _merged(model, images, tta)
        yield item, labels


def _merged(model: SegmentationModel, images: Tensor, tta: TTA) -> Tensor:
    try:
        with evaluating(model), torch.no_grad():
            return tta(model, images).argmax(1)
    except torch.OutOfMemoryError:
        raise UserError(
            f"--tta {tta.name}: the device ran out of memory with up to {tta.batch} views of an image of"
            f" {images.shape[-2]} x {images.shape[-1]} pixels; give a smaller --tta-batch, or --tta none"
        ) from None


def autocast(device: str | torch.device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision for "bf16" and "fp16", nothing for "32"."""
    if precision == "32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16 if precision == "bf16" else torch.float16)


def pick_device(settings: TrainSettings) -> str:
    """``auto`` as ``cuda`` where there is a GPU, else ``cpu``.

    Raises:
        UserError: ``cuda`` was asked for and there is none, or ``fp16`` on a CPU.
    """
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise UserError("device: cuda was asked for, but torch finds no CUDA GPU; use device=cpu or device=auto")
    device = "cuda" if available and settings.device != "cpu" else "cpu"
    if device == "cpu" and settings.precision == "fp16":
        raise UserError("precision: fp16 needs a GPU; use precision=bf16 or precision=32 on a CPU")
    return device


def excluded_indices(settings: TrainSettings) -> list[int]:
    """The indices of ``exclude_from_means``.

    Raises:
        UserError: a name that is not a class.
    """
    names = settings.data.class_names
    for name in settings.exclude_from_means:
        if name not in names:
            raise UserError(f"exclude_from_means: no class {name!r}; the classes are {', '.join(names)}")
    return [names.index(name) for name in settings.exclude_from_means]


def check_card(card: ModelCard, checkpoint: Path, classes: list[str], bands: list[int], origin: str) -> None:
    """Refuse a checkpoint that was trained for other classes or bands than the recipe ``origin`` declares.

    Raises:
        UserError: naming the checkpoint, the difference and the remedy.
    """
    if len(card.classes) != len(classes):
        raise UserError(
            f"{checkpoint}: a model of {len(card.classes)} classes ({', '.join(card.classes)}), but {origin} declares"
            f" {len(classes)}; give the recipe it was trained with"
        )
    if card.classes != classes:
        pairs = zip(card.classes, classes, strict=True)
        index, (theirs, ours) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        raise UserError(
            f"{checkpoint}: its class {index} is {theirs!r}, but {origin} declares {ours!r};"
            " give the recipe it was trained with"
        )
    if card.bands != bands:
        raise UserError(
            f"{checkpoint}: a model for bands {card.bands}, but {origin} reads bands {bands};"
            " give the recipe it was trained with, or set data.bands"
        )
