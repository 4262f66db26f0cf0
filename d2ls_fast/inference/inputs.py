"""The scenes that files, folders and globs on a command line mean."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from d2ls_fast.data.raster import EXTENSIONS
from d2ls_fast.errors import UserError

WRITTEN = ("_labels", "_overlay", "_confidence", "_probabilities")


def find_scenes(inputs: Sequence[str]) -> list[Path]:
    """Image files that ``inputs`` name, each once, in the given order; those of a folder or glob in natural order.

    A folder means the images directly in it, without the maps that an earlier run wrote beside them; globs may use
    ``**``.

    Raises:
        UserError: an input does not exist or holds no image, or two images would have maps of the same name.
    """
    scenes = list(dict.fromkeys(scene for text in inputs for scene in _expand(text)))
    first: dict[str, Path] = {}
    for scene in scenes:
        other = first.setdefault(scene.stem, scene)
        if other is not scene:
            raise UserError(
                f"{scene}: its map would be named {scene.stem}_labels like that of {other}; "
                "map them into different output folders"
            )
    return scenes


def _expand(text: str) -> list[Path]:
    path = Path(text)
    if path.is_file():
        return [path]
    kinds = ", ".join(EXTENSIONS)
    if path.is_dir():
        images = _images(path.iterdir())
        if not images:
            raise UserError(
                f"{path}: no images in this folder ({kinds}); name another, or a glob like '{path}/**/*.tif'"
            )
        return images
    if glob.has_magic(text):
        images = _images(map(Path, glob.glob(text, recursive=True)))
        if not images:
            raise UserError(f"{text}: matches no image ({kinds}); check the pattern")
        return images
    raise UserError(f"{path}: no such file or folder; check the path")


def _images(paths: Iterable[Path]) -> list[Path]:
    images = [path for path in paths if path.suffix.lower() in EXTENSIONS and path.is_file() and path.name[0] != "."]
    stems = {path.with_suffix("") for path in images}

    def is_map(path: Path) -> bool:
        return any(
            path.stem.endswith(ending) and path.with_name(path.stem.removesuffix(ending)) in stems for ending in WRITTEN
        )

    return sorted((path for path in images if not is_map(path)), key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in re.split(r"(\d+)", str(path))]
