"""Which protocol a recipe follows, and what its scores may be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from d2ls_fast.data import DataSplits
from d2ls_fast.data.published import PublishedDataset
from d2ls_fast.errors import UserError
from d2ls_fast.inference.tta import TTA
from d2ls_fast.models.checkpoint import ModelCard
from d2ls_fast.training.config import TrainSettings

_FOLDER = {
    "honest": "protocol honest: trained on train, best model chosen on val, test left for evaluate --split test;"
    " compare with models trained and scored on the same lists",
    "paper": "protocol paper: train, val and test as the recipe lists them; val may lie inside the training images, so"
    " its scores are not held out",
}


def describe(settings: TrainSettings, data: DataSplits, tta: TTA | None = None) -> list[str]:
    """Lines for people: the protocol, what trains and scores, and what the scores may be compared with."""
    how = f"scores here are {tta or TTA()}"
    source = settings.data.published
    if source is None:
        return [_FOLDER[settings.protocol], how]
    subsets = source.subsets(settings.protocol)
    images = {"train": len(data.train.pairs), "val": len(data.val.pairs), "test": len(data.test.pairs)}
    parts = [
        f"{split} = {source.title} {'+'.join(chosen)} ({images[split]} image{'s' * (images[split] != 1)})"
        for split, chosen in subsets._asdict().items()
        if chosen
    ]
    lines = [f"protocol {settings.protocol}: " + ", ".join(parts)]
    lines += [f"note: {note}" for note in _notes(settings, source, images)]
    return [*lines, _comparison(settings, source), how]


def check_protocol(card: ModelCard, checkpoint: Path, settings: TrainSettings, origin: str) -> None:
    """Refuse a checkpoint of the other protocol: it may have been trained on what the recipe holds out.

    Raises:
        UserError: it was trained on the same published data set under another protocol than the recipe ``origin`` says.
    """
    same = settings.data.published is not None and card.dataset == settings.data.dataset
    if same and card.protocol != settings.protocol:
        raise UserError(
            f"{checkpoint}: trained under protocol {card.protocol}, but {origin} says {settings.protocol}, whose splits"
            f" are others; give the recipe it was trained with, or protocol={card.protocol}"
        )


def _notes(settings: TrainSettings, source: PublishedDataset, images: dict[str, int]) -> list[str]:
    subsets = source.subsets(settings.protocol)
    notes: list[str] = []
    for split, chosen in subsets._asdict().items():
        expected = sum(source.counts.get(subset, 0) for subset in chosen)
        if all(subset in source.counts for subset in chosen) and chosen and images[split] != expected:
            notes.append(f"{source.title} {'+'.join(chosen)} was published with {expected} images")
    if _shared(subsets.val, subsets.train):
        notes.append("val lies inside the training images: its scores are not held out, and they choose the best model")
    if _shared(subsets.val, subsets.test):
        notes.append("val and test are the same images: the best model is chosen on what it is scored on")
    if settings.data.geoseg_compat:
        notes.append("geoseg_compat: the padding of every tile trains and scores as class 0, as in the release")
    if not subsets.test:
        notes.append(f"no test split: {source.no_test}")
    return notes


def _comparison(settings: TrainSettings, source: PublishedDataset) -> str:
    if not source.figures:
        return f"compare with models of the same splits; the authors of D2LS published no score on {source.title}"
    if settings.protocol == "paper":
        return f"compare with the published {source.figures}"
    return f"compare with models trained on train alone and chosen on val; not with the published {source.figures}"


def _shared(first: Sequence[str], second: Sequence[str]) -> bool:
    return bool(set(first) & set(second))
