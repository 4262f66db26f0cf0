"""Scoring a checkpoint on one split of a recipe: what ``d2ls-fast evaluate`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from d2ls_fast.data import build_datasets
from d2ls_fast.data.folder import common_bands
from d2ls_fast.data.splits import split_pairs
from d2ls_fast.errors import UserError
from d2ls_fast.files import writable_folder, write_json
from d2ls_fast.inference.tta import TTA
from d2ls_fast.models.checkpoint import load_checkpoint
from d2ls_fast.training.config import TrainSettings
from d2ls_fast.training.evaluate import check_card, evaluate_model, excluded_indices, pick_device
from d2ls_fast.training.protocol import check_protocol, describe
from d2ls_fast.training.report import matrix_table, save_matrix_picture, score_table, scores_to_json
from d2ls_fast.training.reports import new_gallery, write_evaluation_page


def score_checkpoint(
    settings: TrainSettings,
    checkpoint: Path,
    split: str,
    output: Path | None,
    origin: str,
    console: Console | None = None,
    tta: TTA | None = None,
) -> dict[str, Any]:
    """Score ``checkpoint`` on the images of ``split``; print the tables, write ``<split>.json``, .png and .html.

    With test-time augmentation the files are called ``<split>-<preset>``, so that both scores can stand side by side.
    Images are normalised as the checkpoint says, not as the recipe says.

    Args:
        split: ``val`` or ``test``.
        output: folder for the files; ``evaluation`` beside the checkpoint by default.
        origin: the recipe's name, for messages.
        tta: test-time augmentation; none by default.

    Returns:
        What the JSON file holds.

    Raises:
        UserError: a bad checkpoint or one of another model, bad data, no image in the split, an unwritable folder.
    """
    console, tta = console or Console(), tta or TTA()
    device = pick_device(settings)
    exclude = excluded_indices(settings)
    model, card = load_checkpoint(checkpoint, device)
    bands = settings.data.bands or common_bands(settings.data, split_pairs(settings.data).all)
    check_card(card, checkpoint, settings.data.class_names, bands, origin)
    check_protocol(card, checkpoint, settings, origin)
    as_trained = {"normalisation": None, "mean": card.mean, "std": card.std}
    data = build_datasets(settings.data.model_copy(update=as_trained))
    dataset = getattr(data, split)
    if len(dataset) == 0:
        source = settings.data.published
        remedy = f"add data.{split}" if source is None else source.no_test
        raise UserError(f"{origin}: the split {split!r} has no images: {remedy}, or give another --split")
    folder = writable_folder(output or checkpoint.parent / "evaluation", "--output")
    gallery = new_gallery(settings, data)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{split} images", total=len(dataset))
        scores = evaluate_model(
            model,
            dataset,
            len(data.classes),
            exclude,
            device,
            settings.precision,
            settings.workers,
            lambda: bar.advance(task),
            gallery,
            tta,
        )
    protocol = describe(settings, data, tta)
    if card.dataset != settings.data.dataset:
        trained_on = f"dataset: {card.dataset}" if card.dataset else "an unknown data set"
        protocol.append(f"note: the checkpoint was trained on {trained_on}; it may have seen the images scored here")
    result: dict[str, Any] = {"checkpoint": str(checkpoint), "recipe": origin, "split": split, "items": len(dataset)}
    result["tta"] = {"preset": tta.name, "merge": tta.merge, "passes": tta.passes}
    result["protocol"] = protocol
    result |= scores_to_json(scores, data.classes)
    name = split if tta.passes == 1 else f"{split}-{tta.name}"
    write_json(folder / f"{name}.json", result)
    title = f"{checkpoint.name} on {name}: mean IoU {100 * scores.mean_iou:.1f} %"
    save_matrix_picture(folder / f"{name}.png", scores, data.classes, title)
    console.print(score_table(scores, data.classes, f"{checkpoint} on {name}"))
    console.print(matrix_table(scores, data.classes))
    for line in protocol:
        console.print(line, highlight=False, soft_wrap=True)
    page = folder / f"{name}.html"
    write_evaluation_page(page, result, settings, data, scores, gallery, device)
    written = f"{folder / f'{name}.json'}, {folder / f'{name}.png'}, {page}"
    console.print(f"written: {written}", highlight=False, soft_wrap=True)
    return result
