"""Starting the processes of a run on this machine."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from uuid import uuid4

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from d2ls_fast.training.config import TrainSettings


def processes_to_start(settings: TrainSettings) -> int:
    """How many processes the command has to start; 0 where it is itself one of them, or the only one."""
    if torch.distributed.is_torchelastic_launched() or settings.devices in ("auto", 1):
        return 0
    return int(settings.devices)


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run ``d2ls-fast`` with ``arguments`` in several processes, as torchrun does.

    Returns:
        0, or the exit status of the process that failed first.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the process itself has said it
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "d2ls_fast.cli.main", *arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 1
    return 0
