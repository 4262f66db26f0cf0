"""Settings of the ``data:`` group of a recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from d2ls_fast.config import Settings
from d2ls_fast.data.palettes import IGNORE_INDEX, PALETTES, Colour, distinct_colours
from d2ls_fast.data.published.settings import SourceSettings

NORMALISATIONS = ("imagenet", "half", "dataset")


def _read_colour(value: Any) -> Any:
    """``#RRGGBB`` (or ``RRGGBB``) or a list of three numbers 0..255."""
    if value is None or isinstance(value, int):
        # YAML takes an unquoted #RRGGBB for a comment and an all-digit colour for a (possibly octal) number
        raise ValueError("a colour is '#RRGGBB' in quotes, or [red, green, blue]")
    if isinstance(value, str):
        match = re.fullmatch(r"#?([0-9a-fA-F]{6})", value.strip())
        if match is None:
            raise ValueError("a colour is '#RRGGBB' in quotes, or [red, green, blue]")
        return tuple(bytes.fromhex(match.group(1)))
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | int) else value


Byte = Annotated[int, Field(ge=0, le=255)]
ColourSetting = Annotated[tuple[Byte, Byte, Byte], BeforeValidator(_read_colour)]
Patterns = Annotated[list[str], BeforeValidator(_as_list)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Factor = Annotated[float, Field(gt=0.0, le=16.0)]


class ClassSettings(Settings):
    """One class: its name, its RGB colour (in colour masks and in pictures) and its stored values in index masks."""

    name: str = Field(min_length=1)
    colour: ColourSetting = None  # type: ignore[assignment]
    value: Annotated[list[int], BeforeValidator(_as_list)] | None = None


class SplitSettings(Settings):
    """A rule that divides one pool of images; neighbours stay on one side.

    ``spatial`` orders georeferenced images along the longer side of the area they cover, column by column (row by
    row), and images without a georeference in natural order of their names, folder by folder. The last ``test`` share
    of that order is the test split, the ``val`` share before it the validation split. ``shift`` first turns the order
    by that share, so that the held-out run lies elsewhere: with ``val: 0.25, shift: 0.5`` it is the second quarter.
    ``random`` draws single images by ``seed``: only for images that do not border on each other.
    """

    by: Literal["spatial", "random"] = "spatial"
    val: Fraction = 0.2
    test: Fraction = 0.0
    shift: Fraction = 0.0
    seed: int = 0

    @model_validator(mode="after")
    def _leaves_training_images(self) -> SplitSettings:
        if self.val + self.test >= 1.0:
            raise ValueError("val and test together must be below 1, so that training images remain")
        return self


class DataSettings(SourceSettings):
    """A published data set, or a folder of images and masks. Globs and folders are relative to ``root``.

    Pairing in a folder: the mask of ``.../images/x.jpg`` is ``.../masks/x.png`` (or .tif, .tiff, .bmp, .gif, .jp2):
    the last path component equal to ``image_folder`` is replaced by ``mask_folder``, ``image_suffix`` is taken off the
    stem and ``mask_suffix`` put on.
    """

    root: Path
    images: Patterns = Field(default_factory=list)
    """Globs of the pool that ``split`` divides and that names in list files refer to; by default all below
    ``image_folder``."""
    image_folder: str = "images"
    mask_folder: str = "masks"
    image_suffix: str = ""
    mask_suffix: str = ""

    train: Patterns | None = None
    """Globs, or one text file with a name (path below root, file name or stem) on each line."""
    val: Patterns | None = None
    test: Patterns | None = None
    split: SplitSettings | None = None
    allow_overlap: bool = False

    palette: str | None = None
    """A named palette (``loveda``, ``uavid``, ``isprs``, ``isaid``, ``cloud``, ``grass``) instead of ``classes``."""
    classes: list[ClassSettings] = Field(default_factory=list, max_length=IGNORE_INDEX)
    masks: Literal["auto", "index", "colour"] = "auto"
    """How masks are stored. ``auto``: by each file; a palette-mode file counts as colours when every class has one
    and none has a ``value``."""
    ignore_values: list[int] | None = None
    """Raw values without a label; by default 255 (unless a class claims it) and the mask's declared nodata value."""
    ignore_colours: list[ColourSetting] = Field(default_factory=list)
    ignore_unknown: bool = False
    """Undeclared values and colours become unlabelled instead of an error."""

    bands: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] | None = None
    """Source bands in model order, counted from 1; by default all but alpha."""
    grey_as_rgb: bool = False
    """Images of one band are read as three equal ones, where they lie among RGB images (as in iSAID)."""
    nodata: float | None = None
    """Value of pixels without data where the file does not declare it; such pixels are unlabelled and read as the
    mean."""
    size_tolerance: int = Field(default=0, ge=0)
    """Pixels by which image and mask may differ in height and width; both are cut to their common upper left part."""
    scale: Factor = 1.0
    """Resampling factor at load: images by (antialiased) bilinear interpolation, labels by nearest neighbour."""
    scales: dict[str, Factor] = Field(default_factory=dict)
    """``{glob: factor}``: factors of single files instead of ``scale``; the first glob that matches the path below
    root counts."""

    normalisation: Literal["imagenet", "half", "dataset"] | None = None
    """``imagenet`` and ``half`` = (x - 127) / 128 are for 8-bit imagery; ``dataset`` (the default without ``mean``)
    measures the training images."""
    mean: list[float] | None = None
    std: list[Annotated[float, Field(gt=0.0)]] | None = None

    samples_per_epoch: int | None = Field(default=None, ge=1)
    """Random crops in an epoch; by default as many as cover the training area once."""
    eval_tile: int | None = Field(default=None, ge=32)
    """Side of the grid tiles that validation and test images are cut into (edges padded, unlabelled); by default
    whole images."""
    cache_gigabytes: float = Field(default=2.0, ge=0.0)
    """Memory in which each process keeps decoded images, per split. Of what does not fit, GeoTIFF and JPEG 2000 files
    are read by window; other formats are decoded whole each time."""

    @model_validator(mode="after")
    def _consistent(self) -> DataSettings:
        lists = self.train is not None or self.val is not None or self.test is not None
        if lists and self.split is not None:
            raise ValueError("give either train/val/test lists or a split rule, not both")
        if not lists and self.split is None and self.published is None:
            raise ValueError("give train and val (lists of globs, or a text file), or split: {by: spatial, val: 0.2}")
        if lists and self.train is None:
            raise ValueError("val or test is given without train; add train: [globs]")
        if (self.palette is None) == (not self.classes):
            raise ValueError("give classes: [{name, colour}, ...] or the name of a palette, and not both")
        if self.palette is not None and self.palette not in PALETTES:
            raise ValueError(f"no palette {self.palette!r}; there are {', '.join(PALETTES)}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together; give both or neither")
        if self.mean is not None and self.normalisation is not None:
            raise ValueError("give either normalisation or mean and std, not both")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values, std {len(self.std)}; give one of each per band")
        if self.mean is not None and self.bands is not None and len(self.mean) != len(self.bands):
            raise ValueError(f"mean has {len(self.mean)} values for {len(self.bands)} bands; give one per band")
        self._check_classes()
        return self

    def _check_classes(self) -> None:
        names = self.class_names
        if len(set(names)) != len(names):
            raise ValueError("two classes have the same name")
        colours = [entry.colour for entry in self.classes if entry.colour is not None] + list(self.ignored_colours)
        if len(set(colours)) != len(colours):
            raise ValueError("a colour is declared twice; each belongs to one class or to ignore_colours")
        given = [entry.value for entry in self.classes if entry.value is not None]
        if given and len(given) != len(self.classes):
            raise ValueError("some classes have a value and some have none; give one to each class or to none")
        values = [value for group in given for value in group] + (self.ignore_values or [])
        if len(set(values)) != len(values):
            raise ValueError("a mask value is declared twice; each belongs to one class or to ignore_values")
        if self.masks == "colour" and not self.has_colours:
            raise ValueError("masks: colour needs a colour for every class")

    @property
    def class_names(self) -> list[str]:
        """Class names in index order."""
        return list(PALETTES[self.palette].classes) if self.palette else [entry.name for entry in self.classes]

    @property
    def has_colours(self) -> bool:
        """Whether every class declares its colour."""
        return self.palette is not None or all(entry.colour is not None for entry in self.classes)

    @property
    def colours(self) -> list[Colour]:
        """RGB colours in index order, invented where none is declared."""
        if self.palette is not None:
            return list(PALETTES[self.palette].colours)
        spare = distinct_colours(len(self.classes))
        return [entry.colour or spare[index] for index, entry in enumerate(self.classes)]

    @property
    def ignored_colours(self) -> list[Colour]:
        """RGB colours of unlabelled pixels."""
        return [*self.ignore_colours, *(PALETTES[self.palette].ignore_colours if self.palette else ())]
