"""The map of one image file: interrupted anywhere, it goes on where it stopped; written whole or not at all."""

from __future__ import annotations

import glob
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2ls_fast.errors import UserError
from d2ls_fast.inference.mosaic import Layers
from d2ls_fast.inference.predictor import DICTIONARIES, Predictor, Progress
from d2ls_fast.inference.products import Wanted, write_products
from d2ls_fast.inference.scene_dictionary import SceneDictionary
from d2ls_fast.inference.share import Share
from d2ls_fast.inference.sources import DamagedScene, Source, open_scene
from d2ls_fast.inference.spool import Spool, runs


@dataclass(frozen=True)
class SceneMap:
    """What came of one scene."""

    scene: Path
    files: list[Path]
    height: int
    width: int
    seconds: float
    shares: list[float]
    """Each class's share of the pixels with data, 0..1."""
    overlay_factor: int
    """Pixels of the scene per pixel of the overlay, along one side."""


def map_scene(
    predictor: Predictor,
    scene: Path,
    output: Path,
    wanted: Wanted | None = None,
    *,
    nodata: float | None = None,
    resume: bool = True,
    share: Share | None = None,
    progress: Progress | None = None,
) -> SceneMap:
    """Label the image file ``scene`` and write what is ``wanted`` into the folder ``output``, each name beginning with
    the scene's stem; see :func:`~d2ls_fast.inference.products.write_products`.

    Finished rows are kept in the hidden folder ``output/.STEM.partial`` until all files are written. Whatever ends the
    process, the same call goes on from there and gives the same bytes.

    Args:
        wanted: labels and overlay by default.
        nodata: value of pixels without data, where the file does not declare it.
        resume: go on with what an interrupted run of the same scene, model and settings has left.
        share: of the processes that map this scene together; each must make the same call.
        progress: as :meth:`~d2ls_fast.inference.predictor.Predictor.rows` calls it.

    Raises:
        UserError: the scene is unreadable, has too few bands, or ``output`` cannot be written to.
    """
    wanted, share, started = wanted or Wanted(), share or Share(), time.perf_counter()
    with open_scene(scene, predictor.card.bands, nodata) as source:
        total = len(predictor.axes(source)[0])
        settings = {"scene": _identity(scene), "nodata": nodata, "layers": _layers(wanted)._asdict()}
        settings |= predictor.identity()

        def prepare() -> list[int]:
            for left in output.glob(f".{glob.escape(scene.stem)}.*.part"):  # of a process that was killed
                shutil.rmtree(left)
            finished = set(Spool(folder, settings, resume).finished(total))
            return [number for number in range(total) if number not in finished]

        folder = output / f".{scene.stem}.partial"
        missing = share.from_first(prepare)
        spool = Spool(folder, settings)
        try:
            part, layers = share.part(missing), _layers(wanted)
            one = predictor.dictionary == "scene" and len(missing) > 0
            with predictor.adapted(source, progress, share, folder) if one else nullcontext() as adapted:
                share.together(lambda: _fill(spool, predictor, source, layers, part, progress, adapted))
            products = share.from_first(
                lambda: write_products(source, spool.rows(total), predictor.card, scene, output, wanted)
            )
        except (Exception, KeyboardInterrupt) as error:
            if share.rank == 0:
                raise _with_what_is_kept(error, spool, total) from None
            raise
    if share.rank == 0:
        spool.remove()
    seconds = time.perf_counter() - started
    return SceneMap(
        scene, products.files, source.height, source.width, seconds, products.shares, products.overlay_factor
    )


def _fill(
    spool: Spool,
    predictor: Predictor,
    source: Source,
    layers: Layers,
    missing: Sequence[int],
    progress: Progress | None,
    adapted: SceneDictionary | None,
) -> None:
    """Put the rows of windows ``missing`` into the spool; one is written while the next is computed."""
    parts = runs(missing)
    with ThreadPoolExecutor(1, thread_name_prefix="d2ls-fast-spool") as writer:
        written = writer.submit(lambda: None)
        for part in parts:
            for number, rows in zip(part, predictor.rows(source, layers, progress, part, adapted), strict=True):
                written.result()
                written = writer.submit(spool.put, number, rows)
        written.result()


def _layers(wanted: Wanted) -> Layers:
    return Layers(wanted.confidence, wanted.probabilities)


def _identity(scene: Path) -> list[Any]:
    facts = scene.stat()
    return [scene.name, facts.st_size, facts.st_mtime_ns]


def _with_what_is_kept(error: BaseException, spool: Spool, total: int) -> BaseException:
    """``error``, and whether the same command goes on; a spool that it could not go on from is removed."""
    kept = len(spool.finished(total))
    found = (spool.folder / DICTIONARIES).exists()
    if not (kept or found) or isinstance(error, DamagedScene):
        spool.remove()
    elif isinstance(error, UserError):
        what = f"{kept} of {total} rows of windows are" if kept else "what was found of the dictionary is"
        return UserError(f"{error}; {what} kept, the same command goes on from there")
    return error
