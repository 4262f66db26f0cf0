"""Parameter names of the released D2LS implementation, both ways."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from d2ls_fast.errors import UserError
from d2ls_fast.models.weights import fitting, put, read_state_dict, unwrap_state_dict

PREFIX = "net."
"""What Lightning puts in front of every key."""

ORIGIN = "official state dict"
"""What a state dict that is not from a file is called in messages."""

# Present in released checkpoints, never used in the forward pass.
_DEAD = re.compile(r"decoder\.interactor\.layers\.\d+\.(self_attn|mlp|norm1|norm3)\.")
_STAGE = re.compile(r"decoder\.interactor\.layers\.(\d+)\.")

# Ours -> theirs, longest match first where one is part of another; {} is a number that both share.
_NAMES: tuple[tuple[str, str], ...] = (
    ("neck.projections.{}.", "linear_c.{}.proj."),
    ("neck.fuse.", "aggregator."),
    ("positions.frequencies", "pe_layer.positional_encoding_gaussian_matrix"),
    ("dictionary.entries", "decoder.token.basic_queries.weight"),
    ("dictionary.expand.", "decoder.token.token_mlp."),
    ("dictionary.mixture.project.", "decoder.feature_modulator.mlp1.proj."),
    ("dictionary.mixture.max_branch.", "decoder.feature_modulator.gmp_branch.1."),
    ("dictionary.mixture.mean_branch.", "decoder.feature_modulator.gap_branch.1."),
    ("dictionary.mixture.hidden.", "decoder.feature_modulator.mlp2.0."),
    ("dictionary.mixture.output.", "decoder.feature_modulator.mlp2.2."),
    ("interaction.layers.{}.dictionary_attention.", "decoder.interactor.layers.{}.cross_attn_token_to_image."),
    ("interaction.layers.{}.dictionary_norm.", "decoder.interactor.layers.{}.norm2."),
    ("interaction.layers.{}.pixel_attention.", "decoder.interactor.layers.{}.cross_attn_image_to_token."),
    ("interaction.layers.{}.pixel_norm.", "decoder.interactor.layers.{}.norm4."),
    ("interaction.final_attention.", "decoder.interactor.final_attn_token_to_image."),
    ("interaction.final_norm.", "decoder.interactor.norm_final_attn."),
    ("classifier.norm.", "decoder.upsampler.1."),
    ("classifier.hypernetwork.{}.", "decoder.output_hypernetwork_mlps.layers.{}."),
)
_PATTERNS = [(re.compile(re.escape(ours).replace(r"\{\}", r"(\d+)")), theirs) for ours, theirs in _NAMES]

# Linear layers here, 1x1 convolutions there: the same numbers with two more axes of size one.
_CONVOLUTIONS = ("aggregator.weight", "gmp_branch.1.weight", "gap_branch.1.weight")


@dataclass(frozen=True)
class LoadReport:
    """What became of every key of a released checkpoint.

    Attributes:
        used: loaded into the head.
        dead: known parameters that the released forward pass never uses.
        backbone: the backbone's, which the head does not hold.
        unexpected: anything else; nothing was done with them.
    """

    used: tuple[str, ...]
    dead: tuple[str, ...]
    backbone: tuple[str, ...]
    unexpected: tuple[str, ...]


def official_name(name: str) -> str:
    """The released name of one of the head's parameters."""
    for pattern, theirs in _PATTERNS:
        match = pattern.match(name)
        if match:
            return theirs.format(*match.groups()) + name[match.end() :]
    raise KeyError(name)


def load(
    head: nn.Module, source: Mapping[str, Tensor] | str | os.PathLike[str], origin: str | None = None
) -> LoadReport:
    """Copy a released state dict into ``head``, whole or not at all.

    Args:
        head: a :class:`~d2ls_fast.models.head.D2LSHead`.
        source: the state dict or a file that holds one, a Lightning checkpoint as well; with or without the prefix
            ``net.``, with or without the backbone. Values are cast to the head's dtype.
        origin: what messages call the source; None for the file's own path.

    Raises:
        UserError: a key is missing or has another shape, or the checkpoint's forward pass has parts this head lacks.
    """
    given, name = read(source)
    origin = origin or name
    theirs = {key.removeprefix(PREFIX): key for key in given}
    bare = {key: given[full] for key, full in theirs.items()}
    remedy = "it is not a D2LS checkpoint with this head's options: channels, classes, sizes"
    pairs = fitting(head, bare, official_name, origin, "this head", remedy, official_shape)
    report = _sort(theirs, {theirs[key] for key in pairs})
    _refuse_other_forward(origin, {key for key, full in theirs.items() if full in report.unexpected})
    put(pairs.values())
    return report


def read(source: Mapping[str, Tensor] | str | os.PathLike[str]) -> tuple[dict[str, Tensor], str]:
    """The tensors of a state dict, a training checkpoint or a file that holds one, and what to call it in messages.

    Raises:
        UserError: the file cannot be read, or there are no tensors.
    """
    if isinstance(source, (str, os.PathLike)):
        return read_state_dict(source), str(source)
    return unwrap_state_dict(source, ORIGIN), ORIGIN


def export(head: nn.Module) -> dict[str, Tensor]:
    """``head``'s parameters and buffers under their released names and shapes (detached, sharing memory)."""
    exported = {}
    for name, tensor in head.state_dict().items():
        key = official_name(name)
        exported[key] = tensor.reshape(official_shape(key, tensor))
    return exported


def official_shape(key: str, ours: Tensor) -> torch.Size:
    """The released shape of the weight that ``key`` names there."""
    return torch.Size((*ours.shape, 1, 1)) if key.endswith(_CONVOLUTIONS) else ours.shape


def _sort(theirs: dict[str, str], used: set[str]) -> LoadReport:
    groups: dict[str, list[str]] = {"used": [], "dead": [], "backbone": [], "unexpected": []}
    for key, full in theirs.items():
        if full in used:
            groups["used"].append(full)
        elif _DEAD.match(key):
            groups["dead"].append(full)
        else:
            groups["backbone" if key.startswith("backbone.") else "unexpected"].append(full)
    return LoadReport(**{name: tuple(keys) for name, keys in groups.items()})


def _refuse_other_forward(origin: str, unexpected: set[str]) -> None:
    """Keys that change the outputs must not be dropped with a mere note in the report."""
    if "aggregator.bias" in unexpected:
        raise UserError(f"{origin}: key 'aggregator.bias' needs a head created with neck_bias=True")
    if any(key.startswith("decoder.output_head.") for key in unexpected):
        raise UserError(
            f"{origin}: key 'decoder.output_head.weight' is of a variant with an output layer of its own (has_conv or"
            " last_line), which this head does not have; use a checkpoint trained without"
        )
    stages = [int(match.group(1)) for key in unexpected if (match := _STAGE.match(key))]
    if stages:
        raise UserError(
            f"{origin}: interactor layer {max(stages)} holds weights that this head has no place for;"
            " create it with the checkpoint's number of stages and alternating=True"
        )
