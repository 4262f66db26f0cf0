"""Scenes mapped in processes of their own, which may be killed or several."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any


def map_once(scene: Path, output: Path, moment: str) -> None:
    """Map ``scene``; the process is killed when it comes to ``moment``, if one is named."""
    from d2ls_fast import files
    from d2ls_fast.inference import scene as module
    from d2ls_fast.inference.products import Wanted
    from d2ls_fast.inference.spool import Spool

    count = 0

    def kill(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def second(original: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            return (kill if count == 2 else original)(*arguments, **options)

        return call

    if moment == "spool":  # while the second file is written
        Spool.put.__globals__["zipfile"].ZipFile.open = second(Spool.put.__globals__["zipfile"].ZipFile.open)
    elif moment == "products":
        module.write_products = kill
    elif moment == "rename":  # one product has its name, the others have not
        original, write = os.replace, module.write_products

        def armed(*arguments: Any) -> Any:
            files.os.replace = second(original)
            return write(*arguments)

        module.write_products = armed

    def progress(done: int, total: int) -> None:
        if moment == "window" and done == 10:
            kill()

    module.map_scene(_predictor(), scene, output, Wanted(confidence=True), progress=progress)


def map_on_full_disk(scene: Path, output: Path, message: Path) -> None:
    """Map ``scene`` where no file can become larger than 120 kB; the error's text goes to ``message``."""
    import resource

    from d2ls_fast.errors import UserError
    from d2ls_fast.inference.products import Wanted
    from d2ls_fast.inference.scene import map_scene

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))
    try:
        map_scene(_predictor(), scene, output, Wanted(confidence=True))
    except UserError as error:
        message.write_text(str(error))


def map_together(scene: Path, output: Path) -> None:
    """Map ``scene`` as one of the processes that torchrun started."""
    from d2ls_fast.inference.products import Wanted
    from d2ls_fast.inference.scene import map_scene
    from d2ls_fast.inference.share import torchrun_share

    with torchrun_share() as share:
        assert share.size == 2
        map_scene(_predictor(), scene, output, Wanted(confidence=True), share=share)


def _predictor() -> Any:
    import torch
    from torch import nn

    from d2ls_fast.inference.predictor import Predictor
    from d2ls_fast.models.checkpoint import ModelCard

    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3, padding=1)
    colours = [[0, 0, 50 * i] for i in range(4)]
    card = ModelCard({}, list("abcd"), colours, [1, 2, 3], [400.0, 500.0, 600.0], [200.0, 100.0, 150.0])
    return Predictor((model, card), "cpu", window=64, overlap=8)
