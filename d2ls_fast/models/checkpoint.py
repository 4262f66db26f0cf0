"""This package's checkpoints: one .safetensors file with the weights and a card that says how to use them."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from d2ls_fast.errors import UserError
from d2ls_fast.files import replacing
from d2ls_fast.models.base import SegmentationModel
from d2ls_fast.models.build import build_model

_FORMAT = "d2ls_fast checkpoint 1"


@dataclass(frozen=True)
class ModelCard:
    """What one must know to use a trained model on new imagery.

    Attributes:
        model: arguments of :func:`~d2ls_fast.models.build.build_model`.
        classes: names, in label order.
        palette: one RGB triple 0..255 per class.
        bands: 1-based bands of the source images, in the model's order.
        mean, std: per band, in the images' raw units; inputs are ``(image - mean) / std``.
        scale: factor by which imagery is resampled before the model (2.0 doubles its height and width).
        ignore_index: label that takes no part.
        scores: measured results by name.
        dataset, protocol: what it was trained on, as the recipe named them; empty where nobody said.
        crop: side of the training crops in model pixels: dictionary and positional encoding have learned that view.
    """

    model: dict[str, Any]
    classes: list[str]
    palette: list[list[int]]
    bands: list[int]
    mean: list[float]
    std: list[float]
    scale: float = 1.0
    ignore_index: int = 255
    scores: dict[str, float] = field(default_factory=dict)
    dataset: str = ""
    protocol: str = ""
    crop: int = 512


_CARD = TypeAdapter(ModelCard)


def save_checkpoint(path: str | os.PathLike[str], model: SegmentationModel, card: ModelCard) -> None:
    """Write ``model`` and ``card`` to ``path`` (.safetensors), whole or not at all.

    Raises:
        UserError: the card contradicts the model or itself, or the file cannot be written.
    """
    path = Path(path)
    check_card(card, str(path))
    if card.model != model.config:
        raise UserError(f"{path}: card.model is not the configuration of the model to be saved; use model.config")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {"format": _FORMAT, "card": json.dumps(asdict(card))}
    with replacing(path, SafetensorError) as temporary:
        save_file(tensors, temporary, metadata)


def load_checkpoint(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[SegmentationModel, ModelCard]:
    """The model, in evaluation mode on ``device``, and its card. Runs no code from the file and downloads nothing.

    Raises:
        UserError: the file is missing, truncated, not one of this package's, or its weights and card do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; give the path of a .safetensors file written by training")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a readable checkpoint ({error}); it must be a complete .safetensors file written by training"
        ) from None
    if metadata.get("format") != _FORMAT:
        raise UserError(f"{path}: not a checkpoint of this package; use one written by training")
    card = _read_card(metadata.get("card", ""), str(path))
    options = dict(card.model)
    try:
        model = build_model(**{**options, "pretrained": False})
    except (UserError, TypeError) as error:
        raise UserError(f"{path}: its card describes no model this version can build ({error})") from None
    _check_weights(path, model, tensors)
    model.load_state_dict(tensors)
    return model.to(device).eval(), card


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of the names, types, shapes and values of a model's weights and buffers, wherever they are."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_card(text: str, origin: str) -> ModelCard:
    try:
        content = json.loads(text)
        unknown = set(content) - {f.name for f in fields(ModelCard)}
        card = _CARD.validate_python({key: value for key, value in content.items() if key not in unknown})
    except (ValueError, TypeError, AttributeError, ValidationError):
        raise UserError(f"{origin}: its card cannot be read; the file is damaged or of another version") from None
    check_card(card, origin)
    return card


def check_card(card: ModelCard, origin: str) -> None:
    """Raise :class:`UserError`, naming ``origin``, unless the card fits its model and itself."""
    classes, bands = card.model.get("num_classes"), card.model.get("in_chans")
    for name, found, wanted in (
        ("classes", len(card.classes), classes),
        ("palette", len(card.palette), classes),
        ("bands", len(card.bands), bands),
        ("mean", len(card.mean), bands),
        ("std", len(card.std), bands),
    ):
        if found != wanted:
            raise UserError(f"{origin}: the card's {name} has {found} items where the model has {wanted}")
    if any(len(colour) != 3 or not all(0 <= c <= 255 for c in colour) for colour in card.palette):
        raise UserError(f"{origin}: the card's palette must hold RGB triples of 0..255")
    if not all(value > 0 for value in card.std) or not card.scale > 0 or not card.crop > 0:
        raise UserError(f"{origin}: the card's std, scale and crop must be positive")


def _check_weights(path: Path, model: SegmentationModel, tensors: dict[str, torch.Tensor]) -> None:
    wanted = model.state_dict()
    for name, tensor in wanted.items():
        if name not in tensors:
            raise UserError(f"{path}: weight {name!r} is missing; the file does not belong to the model of its card")
        if tensors[name].shape != tensor.shape:
            raise UserError(
                f"{path}: weight {name!r} has shape {list(tensors[name].shape)}, the model of its card needs"
                f" {list(tensor.shape)}; the file does not belong to it"
            )
    extra = sorted(set(tensors) - set(wanted))
    if extra:
        raise UserError(
            f"{path}: holds {extra[0]!r}, which the model of its card does not have; it does not belong to it"
        )
