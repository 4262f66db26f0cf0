"""Whole models from checkpoints of the released D2LS implementation, and back."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from d2ls_fast.errors import UserError
from d2ls_fast.models import official, official_backbones
from d2ls_fast.models.model import D2LS, create_model
from d2ls_fast.models.official import LoadReport
from d2ls_fast.models.torchvision_backbones import PREFIX as TORCHVISION
from d2ls_fast.models.torchvision_backbones import TorchvisionBackbone, architecture
from d2ls_fast.models.weights import fitting, put

_ENTRIES = "decoder.token.basic_queries.weight"
_EXPAND = "decoder.token.token_mlp.weight"
_LAYER = re.compile(r"decoder\.interactor\.layers\.(\d+)\.cross_attn_token_to_image\.")


def load_official(
    source: Mapping[str, Tensor] | str | os.PathLike[str], backbone: str | None = None, **options: Any
) -> D2LS:
    """The model of a checkpoint of the released D2LS implementation, or of a fork of it, in evaluation mode.

    Args:
        source: its state dict or a file that holds one, a Lightning checkpoint as well, with or without the prefix
            ``net.``. Files are opened without running code from them.
        backbone: torchvision's name of it, such as ``convnext_base``; None recognises it by keys and shapes.
        options: what no shape tells, as arguments of :func:`~d2ls_fast.models.model.create_model`: ``num_heads``
            (8 in the release), ``prototypes`` (1: every dictionary entry is a class) and ``prototype_reduction``,
            ``dynamic=False`` for weights trained with ``only_static``. Classes, stages, bands, width and query ratio
            are read from the shapes.

    Warns:
        UserWarning: the checkpoint holds keys that the release does not have; nothing was done with them.

    Raises:
        UserError: the file cannot be read, or a key is missing or has another shape.
    """
    model, report = convert_official(source, backbone, **options)
    if report.unexpected:
        names = ", ".join(report.unexpected[:3])
        warnings.warn(f"{len(report.unexpected)} unexpected keys were left out: {names}", UserWarning, stacklevel=2)
    return model


def convert_official(
    source: Mapping[str, Tensor] | str | os.PathLike[str], backbone: str | None = None, **options: Any
) -> tuple[D2LS, LoadReport]:
    """:func:`load_official` with the report of what became of every key, and no warning."""
    given, origin = official.read(source)
    theirs = {key.removeprefix(official.PREFIX): key for key in given}
    state = {key: given[full] for key, full in theirs.items()}
    if backbone is None:
        backbone, bands = official_backbones.recognise(state, origin)
    else:
        architecture(backbone)
        backbone = backbone.removeprefix(TORCHVISION)
        bands = official_backbones.bands(state, backbone, origin)
    head = _head_options(state, origin, options)
    # A draft without memory finds every misfit before a hostile shape makes the real model ask for it.
    with torch.device("meta"):
        _fill(_build(backbone, bands, head, origin), given, origin)
    model = _build(backbone, bands, head, origin)
    return model.eval(), _fill(model, given, origin)


def export_official(
    model: D2LS, like: Mapping[str, Tensor] | str | os.PathLike[str] | None = None
) -> dict[str, Tensor]:
    """``model``'s weights under their released names and shapes (detached, sharing memory).

    Args:
        like: a released checkpoint whose keys, prefix, order and never used weights the result keeps, so that the
            release loads it with ``strict=True``; None gives the used weights alone, for ``strict=False``.

    Raises:
        UserError: the backbone is not one of the release's, or ``like`` is a checkpoint of another model.
    """
    features = _features(model)
    weights = {
        official_backbones.official_name(features, name): tensor for name, tensor in features.net.state_dict().items()
    } | official.export(model.head)
    if like is None:
        return weights
    given, origin = official.read(like)
    theirs = {key.removeprefix(official.PREFIX): key for key in given}
    for key, tensor in weights.items():
        if key not in theirs or given[theirs[key]].shape != tensor.shape:
            raise UserError(f"{origin}: key {key!r} is missing or misshapen; give a checkpoint of the same model")
    return {full: weights.get(key, given[full]) for key, full in theirs.items()}


def _build(backbone: str, bands: int, head: dict[str, Any], origin: str) -> D2LS:
    try:
        return create_model(TORCHVISION + backbone, in_chans=bands, **head)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None


def _fill(model: D2LS, given: Mapping[str, Tensor], origin: str) -> LoadReport:
    """Copy the checkpoint into ``model``; the report covers the backbone as well."""
    features = _features(model)
    theirs = {key.removeprefix(official.PREFIX): key for key in given}
    pairs = fitting(
        features.net,
        {key: given[full] for key, full in theirs.items()},
        lambda name: official_backbones.official_name(features, name),
        origin,
        f"the backbone {features.name}",
        "name the backbone that the checkpoint was trained on",
    )
    report = official.load(model.head, given, origin)
    put(pairs.values())
    groups: dict[str, list[str]] = {"used": [], "dead": [], "unexpected": []}
    for full in report.backbone:
        key = full.removeprefix(official.PREFIX)
        kind = "used" if key in pairs else "dead" if official_backbones.is_dead(features, key) else "unexpected"
        groups[kind].append(full)
    more = {kind: getattr(report, kind) + tuple(keys) for kind, keys in groups.items()}
    return replace(report, backbone=(), **more)


def _features(model: D2LS) -> TorchvisionBackbone:
    if not isinstance(model.backbone, TorchvisionBackbone):
        raise UserError(
            f"backbone {model.config['backbone']!r} has no place in the D2LS release; create the model with one of"
            f" torchvision's, such as {TORCHVISION}convnext_base"
        )
    return model.backbone


def _head_options(state: Mapping[str, Tensor], origin: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``create_model`` that the shapes tell, and the given ones, which win."""
    entries, width = _matrix(state, _ENTRIES, origin)
    prototypes = options.get("prototypes", 1)
    if prototypes < 1 or entries % prototypes:
        raise UserError(f"{origin}: key {_ENTRIES!r} holds {entries} entries, no multiple of prototypes={prototypes}")
    told: dict[str, Any] = {
        "num_classes": entries // prototypes,
        "embed_dim": width,
        "stages": len({match.group(1) for key in state if (match := _LAYER.match(key))}),
        "neck_bias": "aggregator.bias" in state,
    }
    if options.get("dynamic", True):
        rows = _matrix(state, _EXPAND, origin)[0]
        if rows % width:
            raise UserError(f"{origin}: key {_EXPAND!r} has {rows} rows, D2LS needs a multiple of its width {width}")
        told["query_ratio"] = rows // width
    return told | dict(options)


def _matrix(state: Mapping[str, Tensor], key: str, origin: str) -> tuple[int, int]:
    if key not in state:
        raise UserError(f"{origin}: key {key!r} is missing; give a checkpoint of the D2LS release")
    if state[key].dim() != 2 or not state[key].numel():
        raise UserError(f"{origin}: key {key!r} has shape {list(state[key].shape)}, D2LS needs a matrix")
    return state[key].shape[0], state[key].shape[1]
