"""Several processes in one run: who they are, what each reads, how they share the model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import Sampler

from d2ls_fast.errors import UserError
from d2ls_fast.training.config import TrainSettings


@dataclass(frozen=True)
class Processes:
    """This process among those of the run: ``rank`` of ``world``, ``local`` of them on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 1


def find_processes(settings: TrainSettings, device: str) -> Processes:
    """What torchrun started; one process without it.

    Raises:
        UserError: ``devices`` is another number, there are fewer GPUs than processes, or the settings do not go
            together with several processes.
    """
    if not torch.distributed.is_torchelastic_launched():
        if settings.devices not in ("auto", 1):
            raise UserError(
                f"devices: {settings.devices} processes, but this is one; use the command d2ls-fast train, or start"
                f" your script with torchrun --nproc-per-node {settings.devices}"
            )
        return Processes()
    found = Processes(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")))
    if settings.devices not in ("auto", found.local):
        raise UserError(
            f"devices: {settings.devices}, but torchrun started {found.local} processes on this machine;"
            " leave it out, or give torchrun the same --nproc-per-node"
        )
    if device == "cuda" and torch.cuda.device_count() < found.local:
        raise UserError(
            f"devices: {found.local} processes for {torch.cuda.device_count()} GPUs; start one process for each GPU"
        )
    if settings.strategy == "fsdp" and found.world > 1:
        for key, value, other in (("precision", "fp16", "bf16"), ("compile", True, False)):
            if getattr(settings, key) == value:
                raise UserError(f"{key}: {value} does not go with strategy=fsdp; use {key}={other} or strategy=ddp")
    return found


def pick_strategy(settings: TrainSettings, processes: Processes) -> str | Strategy:
    """Lightning's strategy: each process the whole model (``ddp``, the default) or a share of it (``fsdp``)."""
    if processes.world == 1:
        return "auto"
    if settings.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=processes.world, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return DDPStrategy()


class RankShare(Sampler[int]):
    """The positions that one process reads: each batch of all processes is one run of positions, cut in rank order.

    Together the processes read what one process with ``world`` times the batch would.
    """

    def __init__(self, first: int, last: int, batch_size: int, processes: Processes) -> None:
        self.first = first + processes.rank * batch_size
        self.last = last
        self.batch_size = batch_size
        self.stride = processes.world * batch_size

    def __iter__(self) -> Iterator[int]:
        for start in range(self.first, self.last, self.stride):
            yield from range(start, start + self.batch_size)

    def __len__(self) -> int:
        """Positions of the whole run: Lightning counts the batches before ``first`` as done when it resumes, and would
        otherwise take the run for over, and begin it anew, when as many are read as are left."""
        return len(range(self.first % self.stride, self.last, self.stride)) * self.batch_size


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Divide the parameters of ``model`` over the processes (FSDP2): the backbone as one unit, the rest as another."""
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return
    fully_shard(model.get_submodule("backbone"), mesh=mesh)
    fully_shard(model, mesh=mesh)


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a divided model, whole; every process must call it."""
    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in model.state_dict().items()
    }
