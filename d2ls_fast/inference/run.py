"""One run of the command: several scenes, several processes, failures kept apart, progress shown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from d2ls_fast.data.raster import read_header
from d2ls_fast.errors import UserError
from d2ls_fast.files import writable_folder
from d2ls_fast.inference import memory
from d2ls_fast.inference.predictor import Predictor
from d2ls_fast.inference.products import Wanted
from d2ls_fast.inference.report import SceneProgress, print_maps
from d2ls_fast.inference.scene import SceneMap, map_scene
from d2ls_fast.inference.share import Share, torchrun_share
from d2ls_fast.inference.sources import check_scene


class MapRun(NamedTuple):
    """What is to be mapped, and how."""

    predictor: Predictor
    scenes: Sequence[Path]
    output: Path
    wanted: Wanted
    nodata: float | None = None
    resume: bool = True
    keep_going: bool = False


@dataclass
class _Results:
    maps: list[SceneMap] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def map_scenes(
    run: MapRun, console: Console, max_memory: str | None = None, fixed_window: bool = False
) -> list[SceneMap]:
    """Map all scenes of ``run``, and print what came of them.

    Args:
        max_memory: what the process may take, like ``2GB``; windows and batch are chosen accordingly.
        fixed_window: the predictor's window is not to be changed for that.

    Raises:
        UserError: a scene cannot be mapped; with ``keep_going`` all others are mapped first.
    """
    results = _Results()
    with torchrun_share() as share:
        scenes = _checked(run, results)
        writable_folder(run.output, "--output")
        if max_memory is not None:
            _fit(run, scenes, memory.parse_size(max_memory, "--max-memory"), fixed_window)
        # Whole scenes where there are enough for everybody: nothing is then computed twice and nobody waits.
        alone = len(scenes) >= share.size
        own, helpers = (share.part(scenes), Share()) if alone else (scenes, share)
        quiet = Console(quiet=True) if share.rank else console
        try:
            _map_all(run, own, helpers, quiet, results)
        except KeyboardInterrupt:
            kept = "finished rows are kept; the same command goes on from there"
            print(kept, file=sys.stderr)
            raise
        finally:
            if share.size == 1:
                # What was finished before an error or an interruption is complete and stays: say so.
                print_maps(console, results.maps, run.predictor.card.classes)
        if share.size > 1:
            everything = share.together(lambda: results) if alone else [results]
            results = _Results(
                [each for part in everything for each in part.maps],
                list(dict.fromkeys(each for part in everything for each in part.failures)),
            )
            print_maps(quiet, results.maps, run.predictor.card.classes)
    if results.failures:
        for failure in results.failures if share.rank == 0 else ():
            print(f"failed: {failure}", file=sys.stderr)
        raise UserError(
            f"{len(results.failures)} of {len(run.scenes)} scenes could not be mapped; mend and map them again"
        )
    return results.maps


def _checked(run: MapRun, results: _Results) -> list[Path]:
    """The scenes that can be opened, before any long work starts."""
    good = []
    for scene in run.scenes:
        try:
            check_scene(scene, run.predictor.card.bands)
            good.append(scene)
        except UserError as error:
            _failed(run, error, results)
    return good


def _map_all(run: MapRun, scenes: Sequence[Path], share: Share, console: Console, results: _Results) -> None:
    with SceneProgress(console, len(scenes)) as progress:
        for scene in scenes:
            try:
                result = map_scene(
                    run.predictor,
                    scene,
                    run.output,
                    run.wanted,
                    nodata=run.nodata,
                    resume=run.resume,
                    share=share,
                    progress=progress.scene(scene),
                )
            except UserError as error:
                _failed(run, error, results)
            else:
                results.maps.append(result)


def _failed(run: MapRun, error: UserError, results: _Results) -> None:
    if not run.keep_going:
        raise error
    results.failures.append(str(error))


def _fit(run: MapRun, scenes: Sequence[Path], limit: int, fixed_window: bool) -> None:
    headers = [read_header(scene) for scene in scenes]
    sizes = [(header.height, header.width) for header in headers]
    classes = len(run.predictor.card.classes)
    # Pictures are read whole.
    held = max(
        (h.height * h.width * len(h.bands) * np.dtype(h.dtype).itemsize for h in headers if not h.windowed), default=0
    )
    per_pixel = 2 + 4 * run.wanted.confidence + classes * run.wanted.probabilities
    memory.fit(run.predictor, sizes, per_pixel, held, limit, fixed_window)
