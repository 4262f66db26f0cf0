"""The part of the ``data:`` group that chooses a published data set."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from d2ls_fast.config import Settings
from d2ls_fast.data.published import PUBLISHED, PublishedDataset

Protocol = Literal["honest", "paper"]

FOLDER_KEYS = ("images", "image_suffix", "mask_suffix", "train", "val", "test", "split", "allow_overlap", "palette")
"""Keys that only a folder data set takes."""


def _quoted(value: Any) -> Any:
    if isinstance(value, int):
        raise ValueError("put identifiers in quotes, such as ['7_10'] (YAML reads 7_10 as the number 710)")
    return value


Identifier = Annotated[str, BeforeValidator(_quoted)]
S = TypeVar("S", bound="SourceSettings")


class SourceSettings(Settings):
    """Where images and masks come from: a folder, or a published data set in its published layout.

    A published data set gives every other key of the group its default (classes, mask values, bands, normalisation,
    evaluation tiles); what the recipe says goes first. Its splits follow the protocol.
    """

    dataset: Literal["folder", "loveda", "uavid", "potsdam", "vaihingen", "isaid", "cloud", "grass"] = "folder"
    variant: str | None = None
    """Form of the data set: ``rgb``, ``irrg`` or ``rgbir`` (Potsdam); ``biome`` or ``grey`` mask values (Cloud)."""
    eroded: bool | None = None
    """Potsdam, Vaihingen: validate and test on masks whose class borders are eroded (the default, as in the
    publishers' scores); training always reads the full masks."""
    leave_out: list[Identifier] | None = None
    """Identifiers of images that are not used, such as ``['7_10']``."""
    geoseg_compat: bool = Field(default=False)
    """Potsdam, Vaihingen: reproduce a fault of the released code. Tiles are padded below and on the right to whole
    ``eval_tile`` squares with black pixels of class 0, which train and are scored. Off: padding is never labelled."""

    _protocol: Protocol = PrivateAttr("honest")

    @model_validator(mode="before")
    @classmethod
    def _published_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("dataset") not in PUBLISHED:
            return values
        given = {key: value for key, value in values.items() if value is not None}
        defaults = PUBLISHED[given["dataset"]].defaults(given.get("variant"))
        if "mean" in given:
            defaults.pop("normalisation")
        return defaults | given

    @model_validator(mode="after")
    def _fits_the_data_set(self) -> SourceSettings:
        source = self.published
        if source is None:
            for key in ("variant", "eroded", "leave_out"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} is for published data sets; set dataset: {' | '.join(PUBLISHED)}")
        else:
            fields = type(self).model_fields
            for key in FOLDER_KEYS:
                if getattr(self, key) != fields[key].get_default(call_default_factory=True):
                    raise ValueError(
                        f"{key} is for dataset: folder; {source.title} comes with its published splits (protocol:"
                        " honest | paper chooses among them)"
                    )
            if self.variant is not None and self.variant not in source.variants:
                known = ", ".join(source.variants) or "none"
                raise ValueError(f"{source.title} has no variant {self.variant!r}; its variants: {known}")
            if self.eroded is not None and not source.eroded_truth:
                raise ValueError(f"{source.title} has no eroded masks; take eroded out")
        if self.geoseg_compat and (source is None or not source.eroded_truth):
            raise ValueError("geoseg_compat reproduces a fault with dataset: potsdam or vaihingen only; take it out")
        return self

    @property
    def published(self) -> PublishedDataset | None:
        """The published data set, None for a folder."""
        return PUBLISHED.get(self.dataset)

    @property
    def protocol(self) -> Protocol:
        """Which published subsets train and which score: see :class:`~d2ls_fast.data.published.PublishedDataset`."""
        return self._protocol

    def under(self: S, protocol: Protocol) -> S:
        """The same settings under ``protocol``. A folder's splits are what the recipe lists, under either."""
        changed = self.model_copy()
        changed._protocol = protocol
        return changed
