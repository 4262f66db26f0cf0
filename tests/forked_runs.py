"""Training runs in processes of their own, which may be killed; forks of one process that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from rich.console import Console

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["d2ls_fast.training.fit", "d2ls_fast.training.launch"])


def run_forked(job: Callable[..., None], *arguments: Any, processes: int = 1) -> list[int | None]:
    """Call ``job(*arguments)`` in each of several processes; with more than one, as torchrun would start them.

    Returns:
        Their exit statuses: -9 where the process was killed.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        places = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        environment = names | places if processes > 1 else {}
        started.append(_CONTEXT.Process(target=_call, args=(job, arguments, environment)))
        started[-1].start()
    for process in started:
        process.join(600)  # seconds, on a machine that does other work
    return [process.exitcode for process in started]


def _call(job: Callable[..., None], arguments: tuple[Any, ...], environment: dict[str, Any]) -> None:
    import torch

    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    job(*arguments)


def train(folder: Path, overrides: tuple[str, ...] = (), resume: bool = False, previous: bool = False) -> None:
    """The run of ``folder/recipe.yaml``, as ``write_recipe`` leaves it there, with ``overrides``."""
    from d2ls_fast.config import load_settings
    from d2ls_fast.training.config import TrainSettings
    from d2ls_fast.training.fit import fit

    settings = load_settings(TrainSettings, folder / "recipe.yaml", overrides)
    fit(settings, resume, False, Console(quiet=True), previous)


def run_script(script: Path, folder: Path, printed: Path) -> None:
    """``python script`` from ``folder``; what it prints goes to the file ``printed``."""
    os.chdir(folder)
    with printed.open("w") as output, redirect_stdout(output):
        runpy.run_path(str(script), run_name="__main__")


def train_with_noise(folder: Path, overrides: tuple[str, ...], resume: bool = False, previous: bool = False) -> None:
    """:func:`train` with a random factor in the loss, as dropout would bring it."""
    import torch

    from d2ls_fast.nn.losses import D2LSLoss

    original = D2LSLoss.forward

    def forward(self: D2LSLoss, output: Any, target: torch.Tensor) -> Any:
        total, terms = original(self, output, target)
        return total * (1 + torch.rand(())), terms

    D2LSLoss.forward = forward  # type: ignore[method-assign]
    train(folder, overrides, resume, previous)


def train_and_die(
    folder: Path, overrides: tuple[str, ...], owner: str, name: str, call: int, file: str = "", half: bool = False
) -> None:
    """:func:`train_with_noise`, killed by SIGKILL at the given call of ``owner.name``.

    With ``file`` only the calls with a path of that name count. With ``half`` the call first does its work and then
    cuts the file it wrote in two.
    """
    import importlib

    module, _, member = owner.partition(":")
    holder: Any = importlib.import_module(module)
    holder = getattr(holder, member) if member else holder
    original, calls = getattr(holder, name), iter(range(1, 1000))

    def dying(*arguments: Any, **named: Any) -> Any:
        counts = not file or any(Path(argument).name == file for argument in arguments)
        if counts and next(calls) == call:
            if half:
                original(*arguments, **named)
                path = Path(arguments[1])
                os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    setattr(holder, name, dying)
    train_with_noise(folder, overrides)


def score_a_half(pixels: Path) -> None:
    """One of two processes: scores every second pixel of (truth, prediction) and must get the scores of all."""
    import torch

    from d2ls_fast.training.metrics import ConfusionMatrix

    truth, guess = torch.load(pixels, weights_only=True)
    whole, half = ConfusionMatrix(5, exclude=[4]), ConfusionMatrix(5, exclude=[4])
    whole.update(guess, truth)
    alone = whole.compute()
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    half.update(guess[rank::2], truth[rank::2])
    first, second = half.compute(), half.compute()
    torch.distributed.destroy_process_group()
    assert first == second == alone
