"""Labels for an image of any size: overlapping windows, blended probabilities, bounded memory."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import d2ls_fast
from d2ls_fast.errors import UserError
from d2ls_fast.inference.arrays import map_arrays
from d2ls_fast.inference.device import Result, computing, find_device, in_parts
from d2ls_fast.inference.features import MEMORY, Features, FeatureStore
from d2ls_fast.inference.mosaic import Layers, Mosaic, Window
from d2ls_fast.inference.products.rows import NODATA, MapRows
from d2ls_fast.inference.scene_dictionary import (
    SceneDictionary,
    check_scene_dictionary,
    keep_dictionaries,
    load_dictionaries,
)
from d2ls_fast.inference.scoring import WindowImage, WindowReader, scored, stacked
from d2ls_fast.inference.share import Share
from d2ls_fast.inference.sources import Source
from d2ls_fast.inference.tta import TTA
from d2ls_fast.inference.windows import Axis, Blend, blend_weights, window_starts
from d2ls_fast.models.base import STRIDE
from d2ls_fast.models.checkpoint import ModelCard, load_checkpoint, weights_digest
from d2ls_fast.models.graphed import Graphs
from d2ls_fast.models.head import D2LSHead

SMALLEST = 32  # the model's deepest map has stride 32

Progress = Callable[[int, int], None]
DictionaryOf = Literal["window", "scene"]
DICTIONARIES = "dictionaries.safetensors"


class Predictor:
    """Applies a trained model to imagery in raw units. Threads may share one.

    The image is normalised by the card's mean and standard deviation, resampled by the card's scale, cut into windows
    that overlap, and the windows' class probabilities are blended without rounding and brought back to the image's own
    grid, where the most probable class is taken. Pixels without data get label 255 and confidence NaN.

    Args:
        checkpoint: the file of a trained model, or a model and its card. The model gives logits ``[B, K, h, w]`` for
            images ``[B, bands, h, w]``; it is moved to ``device`` and set to evaluation mode.
        device: where the model runs; ``auto`` takes a GPU if there is one.
        dtype: ``torch.float32``, or ``torch.bfloat16`` / ``torch.float16`` for mixed precision.
        compile: True runs the model through ``torch.compile``: slow at first, faster afterwards on a GPU. ``"graph"``
            captures it in a CUDA graph for every shape of batch that it meets and replays it
            (:class:`~d2ls_fast.models.graphed.Graphs`); beyond eight shapes, which test-time augmentation at several
            scales can have, it is run as without.
        window: side of a window in model pixels, at least 32; by default that of the training crops, to whose view
            dictionary and positional encoding are used.
        overlap: pixels that neighbouring windows share at least; by default three eighths of the window, rounded up
            to the model's deepest stride of 32, so that most windows see the scene on one grid of cells.
        blend: how windows share a pixel: ``cosine``, ``gaussian``, or ``none``; see
            :func:`~d2ls_fast.inference.windows.blend_weights`.
        batch: windows per model call, and views of windows under test-time augmentation; by default as many as have the
            pixels of one window of 512 on a CPU, of eight on a GPU. Halved where the device runs out of memory.
        tta: a preset of :data:`~d2ls_fast.inference.tta.PRESETS`, applied to every window; its scales are on top of the
            card's.
        tta_merge: the mean is taken of ``logits`` or of ``probabilities``.
        dictionary: of a D2LS model: ``window`` adapts one to every window, as in training; ``scene`` adapts one to the
            whole scene, in several passes over its windows, which then lie on a grid of 32 model pixels; see
            :class:`~d2ls_fast.inference.scene_dictionary.SceneDictionary`.
        features: where the windows' pixels are between those passes; see
            :class:`~d2ls_fast.inference.features.FeatureStore`. It changes the time, not the map.

    Raises:
        UserError: no such checkpoint or device, an option outside its range, or more than 255 classes.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str] | tuple[nn.Module, ModelCard],
        device: str | torch.device = "auto",
        dtype: torch.dtype = torch.float32,
        compile: bool | Literal["graph"] = False,
        *,
        window: int | None = None,
        overlap: int | None = None,
        blend: Blend = "cosine",
        batch: int | None = None,
        tta: str = "none",
        tta_merge: str = "logits",
        dictionary: DictionaryOf = "window",
        features: Features = "auto",
    ) -> None:
        model, self.card = checkpoint if isinstance(checkpoint, tuple) else load_checkpoint(checkpoint)
        if len(self.card.classes) > NODATA:
            raise UserError(f"the model has {len(self.card.classes)} classes; label rasters hold at most {NODATA}")
        self.tta = TTA(tta, tta_merge)
        self.device, self.dtype = find_device(device), dtype
        self.model = model.to(self.device).eval()
        if compile == "graph":
            _check_graph(self.device)
        self._scores = _compiled_scores(self.model, compile)
        self.blend, self._compiled = blend, compile
        self.dictionary, self.features, self.feature_memory = dictionary, features, MEMORY
        for name, value, known in (("dictionary", dictionary, DictionaryOf), ("features", features, Features)):
            if value not in get_args(known):
                raise UserError(f"{name} {value!r}: no such setting; take {', '.join(get_args(known))}")
        self.resize(window, overlap, batch)
        if dictionary == "scene":
            check_scene_dictionary(self.model, self.tta, self.window, self.overlap)
            backbone: Any = self.model.backbone
            self._backbone: Callable[[Tensor], Sequence[Tensor]] = backbone
            if compile:
                self._backbone = Graphs(backbone) if compile == "graph" else torch.compile(backbone)

    def resize(self, window: int | None, overlap: int | None, batch: int | None) -> None:
        """Take these windows and batches from now on; the defaults are the constructor's.

        Raises:
            UserError: one is outside its range.
        """
        if window is None:
            window = max(SMALLEST, math.ceil(self.card.crop / SMALLEST) * SMALLEST)
        overlap = _default_overlap(window) if overlap is None else overlap
        if batch is None:
            batch = max(1, (1 if self.device.type == "cpu" else 8) * 512**2 // window**2)
        if window < SMALLEST:
            raise UserError(f"window {window} must be at least {SMALLEST} pixels")
        if batch < 1:
            raise UserError(f"batch {batch} must be at least 1")
        blend_weights(window_starts(1, window, overlap), window, 1, self.blend)
        self.window, self.overlap, self.batch, self.tta.batch = window, overlap, batch, batch
        # What was asked for: the batch may be halved on the way.
        self._sizes = [window, overlap, batch]

    def identity(self) -> dict[str, Any]:
        """All that a map depends on besides the scene, as JSON values: the weights by their digest."""
        options = [self.device.type, str(self.dtype), self._compiled, self.blend, *self._sizes]
        options += [str(self.tta), self.dictionary]
        versions = {"d2ls_fast": d2ls_fast.__version__, "torch": torch.__version__}
        return {"weights": weights_digest(self.model), "card": asdict(self.card), "options": options, **versions}

    @overload
    def predict(
        self, image: NDArray[Any], nodata: float | None = ..., *, progress: Progress | None = ...
    ) -> NDArray[np.uint8]: ...

    @overload
    def predict(
        self,
        image: NDArray[Any],
        nodata: float | None = ...,
        *,
        return_confidence: Literal[True],
        progress: Progress | None = ...,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]: ...

    @overload
    def predict(self, image: Tensor, nodata: float | None = ..., *, progress: Progress | None = ...) -> Tensor: ...

    @overload
    def predict(
        self,
        image: Tensor,
        nodata: float | None = ...,
        *,
        return_confidence: Literal[True],
        progress: Progress | None = ...,
    ) -> tuple[Tensor, Tensor]: ...

    def predict(
        self,
        image: NDArray[Any] | Tensor,
        nodata: float | None = None,
        *,
        return_confidence: bool = False,
        progress: Progress | None = None,
    ) -> Any:
        """Labels ``[h, w]`` uint8 of ``image`` ``[bands, h, w]`` (any real type, raw units, bands in model order).

        An array gives arrays, a tensor gives tensors on the CPU. Images ``[B, bands, h, w]`` give labels ``[B, h, w]``.
        With ``return_confidence`` also the probability of the label, float32 of the same shape. ``progress(done,
        total)`` is called as windows of an image are finished.

        Raises:
            UserError: the image is no image or images of the model's number of bands.
        """

        def rows(source: Source) -> Iterator[MapRows]:
            return self.rows(source, Layers(confidence=return_confidence), progress)

        return map_arrays(image, len(self.card.mean), nodata, return_confidence, rows)

    def axes(self, source: Source) -> tuple[Axis, Axis]:
        """The rows and the columns of windows that ``source`` is cut into."""
        grid = STRIDE if self.dictionary == "scene" else 1
        options = (self.card.scale, self.window, self.overlap, self.blend, grid)
        return Axis(source.height, *options), Axis(source.width, *options)

    def batch_of(self, columns: int) -> int:
        """Windows per model call in rows of so many: even, so that none is left for a call of its own."""
        return math.ceil(columns / math.ceil(columns / self.batch))

    def rows(
        self,
        source: Source,
        layers: Layers | None = None,
        progress: Progress | None = None,
        part: range | None = None,
        adapted: SceneDictionary | None = None,
    ) -> Iterator[MapRows]:
        """The map of ``source`` from top to bottom, the rows that each row of windows finishes.

        Args:
            source: the scene.
            layers: what to give besides the labels.
            progress: called with how many windows are done, of how many.
            part: these rows of windows only, and the rows of the map that they finish; the result is the same part of
                the whole.
            adapted: the scene's own dictionary; found first where there is to be one and it is not given.
        """
        if adapted is None and self.dictionary == "scene":
            with self.adapted(source, progress) as adapted:
                yield from self.rows(source, layers, progress, part, adapted)
            return
        rows, columns = self.axes(source)
        part = range(len(rows)) if part is None else part
        if not len(part):
            return
        first = rows.before(part.start)
        mosaic = Mosaic(rows, columns, len(self.card.classes), layers or Layers(), self.device, first)
        reader = WindowReader(source, rows, columns, self.card.mean, self.card.std)
        done = adapted.done if adapted else 0
        total, count = done + (part.stop - first) * len(columns), itertools.count(done + 1)

        def counted(windows: Iterator[Window]) -> Iterator[Window]:
            for window in windows:
                yield window
                if progress is not None:
                    progress(next(count), total)

        batch = self.batch_of(len(columns))
        with closing(mosaic), closing(reader.read(range(first, part.stop), 2 * batch)) as images:
            for number in range(first, part.stop):
                row = itertools.islice(images, len(columns))
                classify = partial(adapted.classify, number) if adapted else self._classify
                finished = mosaic.add(number, counted(scored(row, classify, batch)))
                if number in part:
                    yield finished

    @contextmanager
    def adapted(
        self,
        source: Source,
        progress: Progress | None = None,
        share: Share | None = None,
        folder: Path | None = None,
    ) -> Iterator[SceneDictionary]:
        """The dictionary of the whole ``source``; afterwards the pixels that were kept for it are deleted.

        Args:
            source: the scene.
            progress, share: see :meth:`~d2ls_fast.inference.scene_dictionary.SceneDictionary.find`.
            folder: keeps what was found of it, for the next call, and is used for pixels on disk.
        """
        share = share or Share()
        with tempfile.TemporaryDirectory(prefix="d2ls-fast-") as temporary:
            rows, columns = self.axes(source)
            windows = len(share.part(range(len(rows)))) * len(columns)
            pixels = (folder or Path(temporary)) / f"features-{share.rank}"
            store = FeatureStore(self.features, windows, self.feature_memory, pixels, share.size)
            found = share.from_first(lambda: load_dictionaries(folder / DICTIONARIES)) if folder else []
            with closing(store):
                adapted = SceneDictionary(self, source, store, found)
                adapted.find(share, progress, partial(keep_dictionaries, folder / DICTIONARIES) if folder else None)
                yield adapted

    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities float32 ``[B, K, h, w]`` of normalised windows, on the device."""
        parts = self._in_parts(lambda part: self.tta(self._scores, part).float().softmax(dim=1), images)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def embedded(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What a D2LS model's dictionary meets in each of some normalised windows, on the device.

        The pixels ``[1, N, C]`` in the predictor's dtype, and the backbone's deepest map ``[1, c, h, w]``.
        """

        def run(part: Tensor) -> list[tuple[Tensor, Tensor]]:
            maps = self._backbone(part)
            pixels = cast("D2LSHead", self.model.head).neck(maps).to(self.dtype)
            return list(zip(pixels.split(1), maps[-1].split(1), strict=True))

        return [each for part in self._in_parts(run, images) for each in part]

    def computing(self) -> AbstractContextManager[None]:
        """The precision that was asked for, and no gradients."""
        return computing(self.device, self.dtype)

    def _classify(self, windows: Sequence[WindowImage]) -> Tensor:
        return self.probabilities(stacked(windows))

    def _in_parts(self, run: Callable[[Tensor], Result], images: Tensor) -> list[Result]:
        """``run`` on the device with all ``images`` at once, or with parts of them that fit its memory."""
        with self.computing():
            return in_parts(lambda part: run(part.to(self.device)), images, self._smaller)

    def _smaller(self, count: int) -> int:
        """Halve the batch, from now on."""
        if count == 1 and self.tta.batch == 1:
            return 0
        self.batch = max(1, min(self.batch, count // 2))
        self.tta.batch = max(1, self.tta.batch // 2)
        return self.batch


def _check_graph(device: torch.device) -> None:
    if device.type != "cuda":
        raise UserError(f"compile 'graph': a CUDA graph needs a GPU, the device is {device}; take True or False")


def _compiled_scores(model: nn.Module, how: bool | str) -> Callable[[Tensor], Tensor]:
    if how != "graph":
        return torch.compile(model) if how else model
    graphs = Graphs(lambda images: [model(images)])
    return lambda images: graphs(images)[0]


def _default_overlap(window: int) -> int:
    rounded = math.ceil(window * 3 / 8 / STRIDE) * STRIDE
    return rounded if rounded < window else window // 2
