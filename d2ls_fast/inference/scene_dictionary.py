"""One dictionary for a whole scene that is larger than a window, so that classes mean the same everywhere in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from d2ls_fast.errors import UserError
from d2ls_fast.files import replacing
from d2ls_fast.inference.cells import coarse
from d2ls_fast.inference.features import FeatureStore
from d2ls_fast.inference.scene_windows import SceneWindows, Visited
from d2ls_fast.inference.scoring import WindowImage
from d2ls_fast.inference.share import Share
from d2ls_fast.inference.sources import Source
from d2ls_fast.inference.summaries import Looked, Pooled, Summary, merged
from d2ls_fast.inference.tta import TTA
from d2ls_fast.models.base import STRIDE
from d2ls_fast.models.head import D2LSHead
from d2ls_fast.models.model import D2LS
from d2ls_fast.nn.dictionary import MixtureWeights
from d2ls_fast.nn.interaction import InteractionStage
from d2ls_fast.ops.attend import attend
from d2ls_fast.ops.dictionary_step import Step

if TYPE_CHECKING:
    from d2ls_fast.inference.predictor import Predictor

Progress = Callable[[int, int], None]


class SceneDictionary:
    r"""D2LS on a scene cut into windows, with the dictionary that the whole scene would give.

    Every stride-4 cell belongs to one window: overlaps are cut in the middle, on the grid of 32 pixels that all strides
    share. A look of the dictionary at the scene is made of its looks at what each window w owns. With their contexts
    :math:`M_w` and log-sum-exps :math:`\ell_w` (see :func:`~d2ls_fast.ops.attend.attend`)

    .. math:: \ell = \log \sum_w e^{\ell_w}, \quad M = \sum_w e^{\ell_w - \ell} M_w

    is the softmax over all cells, whatever the windows; the sums are float64, over each row of windows and then over
    the rows, always in the same order. Likewise the mixture weights of the dynamic dictionary come from maxima and sums
    over the stride-32 cells. Positions are those in the whole scene. So the result is that of predicting the scene at
    once, as far as backbone and neck see the same around a pixel; what windows share is classified in each and blended.

    That takes a pass over all windows for the mixture weights (none for a static dictionary), one for each of the L + 1
    looks, and the one that classifies. Between passes a :class:`~d2ls_fast.inference.features.FeatureStore` keeps the
    windows' pixels; what it does not keep is computed anew from the image, with all updates so far, to the same bits.

    Cells without a pixel that holds data (of stride 32: without such a cell) count in no look and in no pool.

    Args:
        predictor: of a D2LS model, with ``dictionary="scene"``.
        source: the scene.
        store: where pixels are kept, empty.
        found: the dictionaries of an earlier run, as :func:`load_dictionaries` gives them.
    """

    def __init__(self, predictor: Predictor, source: Source, store: FeatureStore, found: Sequence[Tensor] = ()) -> None:
        self._predictor = predictor
        self._windows = SceneWindows(predictor, source, store)
        self._head = cast("D2LSHead", predictor.model.head)
        self._steps: list[Step] = []  # what each dictionary has the pixels do, and how it looks at them
        self.dictionaries: list[Tensor] = []
        """D_0, and what each look made of it, ``[1, K * P, C]``."""
        self.done = 0
        """How many windows were visited to find them; a window counts in every pass."""
        for each in found:
            self._add(each.to(predictor.device))

    def find(
        self,
        share: Share | None = None,
        progress: Progress | None = None,
        keep: Callable[[Sequence[Tensor]], None] | None = None,
    ) -> None:
        """Make the passes that are missing; a scene without any data gives no dictionary.

        Args:
            share: of the processes that do so together, each with its own rows of windows; the bits do not depend on
                how many there are.
            progress: called with how many windows are done, of how many including those to be classified.
            keep: called in the first process with the dictionaries found so far, after each.
        """
        share, looks = share or Share(), len(self._head.interaction.looks)
        part = cast("range", share.part(range(len(self._windows.rows))))
        passes = looks + 1 - max(len(self.dictionaries), 0 if self._head.dynamic else 1)
        total = (passes + 1) * len(part) * len(self._windows.columns)

        def visited() -> None:
            self.done += 1
            if progress is not None:
                progress(self.done, total)

        while len(self.dictionaries) <= looks:
            dictionary = self._next(share, part, visited) if self.dictionaries else self._first(share, part, visited)
            if dictionary is None:
                return
            self._add(dictionary)
            if keep is not None:
                share.from_first(partial(keep, self.dictionaries))

    def classify(self, row: int, windows: Sequence[WindowImage]) -> Iterator[Tensor]:
        """Class probabilities, float32 ``[K, h, w]`` each, of ``windows`` of one row that all hold data."""
        for window in self._windows.pixels(row, windows, self._updates):
            with self._predictor.computing():
                logits = self._head.classifier(window.pixels, self.dictionaries[-1], self._windows.grid)
                probabilities = logits.float().softmax(dim=1)[0]
            yield probabilities

    @property
    def _updates(self) -> Sequence[Step]:
        """What the dictionaries found so far do with the pixels; nothing in a model that leaves them as they are."""
        refines = cast("InteractionStage", self._head.interaction.layers[0]).pixel_attention is not None
        return self._steps[1:] if refines else ()

    def _add(self, dictionary: Tensor) -> None:
        """Take what was found, and what it has the next pass do with the pixels."""
        self.dictionaries.append(dictionary)
        number, interaction = len(self._steps), self._head.interaction
        if number < len(interaction.looks):
            with self._predictor.computing():
                self._steps.append(interaction.rows(number, dictionary, self.dictionaries[0], self._predictor.dtype))

    def _first(self, share: Share, part: range, visited: Callable[[], None]) -> Tensor | None:
        """D_0; ``None``: there is no data."""
        dictionary = self._head.dictionary
        if dictionary.mixture is None:
            return dictionary.static(1).detach()
        pooled = self._summary(share, part, self._pooled, visited)
        if pooled is None:
            return None
        with self._predictor.computing():
            highest, mean = pooled.highest, pooled.total / pooled.cells
            halves = (each.float().to(self._predictor.device)[None] for each in (highest, mean))
            return dictionary.mixed(dictionary.mixture.weigh(*halves))

    def _next(self, share: Share, part: range, visited: Callable[[], None]) -> Tensor | None:
        """What the next look makes of the dictionary; ``None``: there is no data."""
        looked = self._summary(share, part, self._looked, visited)
        if looked is None:
            return None
        with self._predictor.computing():
            context = looked.context.float().to(self._predictor.device)[None]
            number, first, last = len(self._steps) - 1, self.dictionaries[0], self.dictionaries[-1]
            return self._head.interaction.look(number, last, first, context, self._predictor.dtype)

    def _summary(
        self, share: Share, part: range, seen: Callable[[Visited], Summary | None], visited: Callable[[], None]
    ) -> Summary | None:
        """What is ``seen`` in all windows of all processes, merged row by row."""

        def own() -> list[Summary]:
            rows: dict[int, Summary] = {}
            for window in self._windows.visit(part, self._updates, visited):
                found, row = seen(window), window.place[0]
                if found is not None:
                    rows[row] = rows[row].merged(found) if row in rows else found
            return list(rows.values())

        return merged([each for process in share.together(own) for each in process])

    def _pooled(self, window: Visited) -> Pooled | None:
        cells = torch.from_numpy(np.flatnonzero(coarse(self._windows.counting(window.place))))
        if window.deepest is None or not len(cells):
            return None
        with self._predictor.computing():
            halves = cast("MixtureWeights", self._head.dictionary.mixture).halves(window.deepest)
            highest, averaged = (each[0].cpu()[cells] for each in halves)
            return Pooled(highest.amax(0), averaged.double().sum(0), len(cells))

    def _looked(self, window: Visited) -> Looked | None:
        cells = torch.from_numpy(np.flatnonzero(self._windows.counting(window.place))).to(self._predictor.device)
        if not len(cells):
            return None
        with self._predictor.computing():
            pixels, positions = window.pixels[:, cells], window.positions[cells]
            context, log_sum_exp = attend(pixels, positions, self._steps[-1].query)
            return Looked(context[0].cpu().double(), log_sum_exp[0].cpu().double())


def check_scene_dictionary(model: nn.Module, tta: TTA, window: int, overlap: int) -> None:
    """Refuse what cannot have one dictionary for a whole scene.

    Raises:
        UserError: a model that is no D2LS, test-time augmentation, or windows off the grid of 32 pixels.
    """
    if not isinstance(model, D2LS):
        name = type(model).__name__
        raise UserError(f"dictionary scene: {name} has no dictionary; take a D2LS model, or dictionary window")
    if tta.passes > 1:
        raise UserError(f"dictionary scene: not possible with tta {tta.name}; take tta none, or dictionary window")
    if window % STRIDE:
        below = window // STRIDE * STRIDE
        raise UserError(
            f"window {window} must be a multiple of {STRIDE} with dictionary scene; take {below} or {below + STRIDE}"
        )
    if overlap > window - STRIDE:
        raise UserError(
            f"overlap {overlap} is rounded up to a multiple of {STRIDE} with dictionary scene, "
            f"which must be smaller than the window of {window} pixels; take at most {window - STRIDE}"
        )


def keep_dictionaries(path: Path, dictionaries: Sequence[Tensor]) -> None:
    """Write what was found so far into the file ``path``, whole or not at all."""
    with replacing(path) as temporary:
        save_file({"dictionaries": torch.cat(list(dictionaries)).cpu()}, temporary)


def load_dictionaries(path: Path) -> list[Tensor]:
    """What :func:`keep_dictionaries` has written; nothing where there is no such file, or a damaged one."""
    with suppress(OSError, SafetensorError):
        return list(load_file(path)["dictionaries"].split(1))
    return []
