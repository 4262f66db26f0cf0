"""What the command line shows while it maps scenes, and afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from d2ls_fast.inference import predictor
from d2ls_fast.inference.scene import SceneMap

MOST_COLUMNS = 6  # more classes than this do not fit a terminal's width; the overlay's legend has them all


class SceneProgress:
    """A bar that counts the windows of the scene at hand, out of ``count`` scenes."""

    def __init__(self, console: Console, count: int) -> None:
        self._count, self._started = count, 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("windows"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None)

    def scene(self, path: Path) -> predictor.Progress:
        """The callback for the next scene."""
        self._started += 1
        self._bar.reset(self._task, description=f"{path.name} ({self._started}/{self._count})", total=None)
        return lambda done, total: self._bar.update(self._task, completed=done, total=total)

    def __enter__(self) -> SceneProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def print_maps(console: Console, maps: Sequence[SceneMap], classes: Sequence[str]) -> None:
    """A table of the scenes with their speed and class shares, and the files written; nothing for no scenes."""
    if not maps:
        return
    columns = classes if len(classes) <= MOST_COLUMNS else []
    table = Table(title="maps")
    table.add_column("scene", overflow="fold", min_width=12)
    for heading in ("size", "Mpixel/s", *columns):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in maps:
        speed = result.height * result.width / result.seconds
        shares = [f"{share:.1%}" for share in result.shares[: len(columns)]]
        table.add_row(result.scene.name, f"{result.height} x {result.width}", f"{speed / 1e6:.2f}", *shares)
    console.print(table)
    for result in maps:
        for path in result.files:
            shrunk = result.overlay_factor > 1 and path.stem.endswith("_overlay")
            note = f" (shown at 1:{result.overlay_factor})" if shrunk else ""
            console.print(f"wrote {path}{note}", soft_wrap=True, highlight=False)
