"""The CSV record of a run."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from d2ls_fast.files import replacing


class CsvLog(Logger):
    """Appends one row per logged step to a CSV file with fixed columns; a resumed run continues the same file.

    Args:
        path: the file; its folder exists.
        columns: metric names after ``step``; other metrics are not recorded.
        resume_step: keep the rows of an earlier run up to this step; ``None`` starts the file anew.
    """

    def __init__(self, path: Path, columns: Sequence[str], resume_step: int | None = None) -> None:
        super().__init__()
        self.path = path
        self.columns = ["step", *columns]
        kept: list[dict[str, str]] = []
        if resume_step is not None and path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # a kill may leave half a line
            kept = [row for row in csv.DictReader(whole) if int(row["step"]) <= resume_step]
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore", restval="")
            writer.writeheader()
            writer.writerows(kept)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Settings are written to settings.yaml, not here."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {name: f"{metrics[name]:.6g}" for name in self.columns if name in metrics}
        if not row:
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="").writerow({**row, "step": "" if step is None else step})
