"""What one must know to use a released checkpoint, which itself holds weights alone."""

from __future__ import annotations

from collections.abc import Sequence

from d2ls_fast.data.palettes import PALETTES, distinct_colours
from d2ls_fast.data.published import PUBLISHED
from d2ls_fast.errors import UserError
from d2ls_fast.models.backbones import nearest
from d2ls_fast.models.checkpoint import ModelCard
from d2ls_fast.models.model import D2LS


def official_card(
    model: D2LS,
    dataset: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ModelCard:
    """The card of a model from :func:`~d2ls_fast.models.load_official.load_official`.

    Args:
        dataset: a published data set by name, for the classes' names and colours; None numbers the classes.
        mean, std: per band in raw units; None for ImageNet's of 8-bit RGB, which the release normalises with.

    Raises:
        UserError: an unknown data set or one with another number of classes, or ``mean`` and ``std`` are missing
            where the bands are not three or are not one number per band.
    """
    classes, bands = int(model.config["num_classes"]), int(model.config["in_chans"])
    names = [f"class {index}" for index in range(classes)]
    colours = distinct_colours(classes)
    if dataset is not None:
        if dataset not in PUBLISHED:
            raise UserError(f"data set {dataset!r} is unknown; {nearest(dataset, list(PUBLISHED))}")
        palette = PALETTES[PUBLISHED[dataset].palette]
        names, colours = list(palette.classes), list(palette.colours)
        if len(names) != classes:
            raise UserError(
                f"data set {dataset!r} has {len(names)} classes, the checkpoint {classes}; name the one it was trained"
                " on, or none (and say how many prototypes a class has, if more than one)"
            )
    values = {}
    for name, given, default in (("mean", mean, model.backbone.input_mean), ("std", std, model.backbone.input_std)):
        values[name] = [float(value) for value in (default if given is None else given)]
        if len(values[name]) != bands:
            raise UserError(f"the checkpoint takes {bands} bands: give {bands} numbers as {name}, one per band")
    return ModelCard(
        model=model.config,
        classes=names,
        palette=[list(colour) for colour in colours],
        bands=list(range(1, bands + 1)),
        mean=values["mean"],
        std=values["std"],
        dataset=dataset or "",
        protocol="D2LS release",
    )
