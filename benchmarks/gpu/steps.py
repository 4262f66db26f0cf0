"""Runs commands one after the other, each within its time; one that fails or takes longer does not stop the others."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

GRACE = 5.0
"""Seconds between asking a command that ran out of time to stop and making it."""


@dataclass(frozen=True)
class Step:
    """A command, its own process group's time limit in seconds, and what it needs to be run at all.

    ``needs`` is an executable; ``kind`` is what it is selected by.
    """

    name: str
    command: Sequence[str]
    limit: float
    cwd: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""

    @property
    def kind(self) -> str:
        return self.name.split(":")[0]

    @property
    def log(self) -> str:
        return self.name.replace(":", "-") + ".log"


@dataclass(frozen=True)
class Outcome:
    """What became of a step (``done``, ``failed``, ``out of time``, ``skipped``), and the last line that it printed."""

    name: str
    status: str
    seconds: float
    said: str


def run(step: Step, folder: Path, left: float) -> Outcome:
    """Run a step with at most ``left`` seconds, its output in ``folder``."""
    if step.needs and shutil.which(step.needs) is None:
        return Outcome(step.name, "skipped", 0.0, f"{step.needs} is not on the PATH")
    limit = min(step.limit, left)
    if limit < 1:
        return Outcome(step.name, "skipped", 0.0, "no time left; select it alone, as in STEPS=" + step.kind)
    log, started = folder / step.log, time.monotonic()
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                step.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=step.cwd,
                env={**os.environ, **step.environment},
                start_new_session=True,
            )
        except OSError as error:
            return Outcome(step.name, "failed", 0.0, f"{step.command[0]}: {error.strerror}")
        try:
            status = "done" if process.wait(limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "out of time"
        finally:
            _stop(process)
    return Outcome(step.name, status, time.monotonic() - started, last_line(log))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the process and of those that it started."""
    for signal_ in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signal_)
        except (ProcessLookupError, PermissionError):
            break
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def last_line(log: Path) -> str:
    """The last line that says something, shortened."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line[:160] for line in reversed(lines) if line.strip("= -")), "")
