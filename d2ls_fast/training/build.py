"""The parts of a training run, made from its settings."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch.utils.data import DataLoader

from d2ls_fast.data import DataSplits, Item
from d2ls_fast.errors import UserError
from d2ls_fast.models.base import SegmentationModel
from d2ls_fast.models.build import build_model
from d2ls_fast.models.checkpoint import ModelCard
from d2ls_fast.models.head import D2LSHead
from d2ls_fast.models.model import D2LS
from d2ls_fast.nn.contrast import PixelDictionaryInfoNCE
from d2ls_fast.nn.losses import D2LSLoss
from d2ls_fast.training.batch_norm import join_batch_norms
from d2ls_fast.training.config import LossSettings, TrainSettings
from d2ls_fast.training.log import CsvLog
from d2ls_fast.training.module import SegmentationModule
from d2ls_fast.training.parallel import Processes, RankShare, pick_strategy
from d2ls_fast.training.sampling import TrainingStream

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
TERMS = ("cross_entropy", "mask", "dice", "auxiliary", "intermediate", "contrastive")
COLUMNS = ("loss", *(f"loss_{term}" for term in TERMS), "lr", "mean_iou", "mean_f1", "overall_accuracy")


def build_module(
    settings: TrainSettings,
    data: DataSplits,
    total_steps: int,
    fresh: bool,
    steps_per_epoch: int = 1,
    device: str = "cpu",
    processes: Processes = Processes(),  # noqa: B008 (immutable)
) -> SegmentationModule:
    """Model, loss and optimizer. A ``fresh`` run starts from the pretrained weights, a resumed one from its state."""
    arguments = settings.model.arguments()
    if not fresh:
        arguments["pretrained"] = False
    model = build_model(num_classes=len(data.classes), in_chans=len(data.bands), **arguments)
    if isinstance(model, D2LS):
        leave_out_unused(model.head, settings.loss)
    if processes.world > 1:
        join_batch_norms(model, device)
    sharded = processes.world > 1 and settings.strategy == "fsdp"
    if settings.channels_last and not sharded:  # FSDP divides contiguous parameters only
        model = model.to(memory_format=torch.channels_last)
    loss = model.training_loss(build_loss(settings, data))
    module = SegmentationModule(model, loss, settings, total_steps, steps_per_epoch, sharded)
    if settings.compile:
        module.model.compile()
    return module


def build_loss(settings: TrainSettings, data: DataSplits) -> D2LSLoss:
    """The loss of the recipe, whose class weights are numbers by now.

    Raises:
        UserError: another number of class weights than classes.
    """
    weights = settings.loss.class_weights
    assert weights != "frequencies"
    if weights is not None and len(weights) != len(data.classes):
        raise UserError(f"loss.class_weights: {len(weights)} values for {len(data.classes)} classes; give one each")
    if settings.loss.diversity_weight and settings.model.prototypes < 2:
        raise UserError("loss.diversity_weight: keeps a class's prototypes apart; set model.prototypes to 2 or more")
    nce = PixelDictionaryInfoNCE(**settings.loss.nce.model_dump(), prototypes=settings.model.prototypes)
    return D2LSLoss(**settings.loss.model_dump(exclude={"nce", "frequency_form"}), nce=nce)


def leave_out_unused(head: D2LSHead, loss: LossSettings) -> None:
    """Make the head compute in training what the loss has a weight for, and nothing else."""
    head.auxiliary = head.auxiliary and loss.auxiliary_weight > 0
    head.intermediate = loss.intermediate_weight > 0
    if loss.contrastive != "ratio" or loss.contrastive_weight == 0:
        head.contrast = None


def build_card(model: SegmentationModel, data: DataSplits, settings: TrainSettings) -> ModelCard:
    """What the checkpoint says about the model."""
    return ModelCard(
        model=model.config,
        classes=data.classes,
        palette=data.palette,
        bands=data.bands,
        mean=data.mean,
        std=data.std,
        scale=data.scale,
        crop=settings.augment.crop,
        dataset=settings.data.dataset,
        protocol=settings.protocol,
    )


def build_loader(
    settings: TrainSettings,
    data: DataSplits,
    total_steps: int,
    first_step: int,
    processes: Processes = Processes(),  # noqa: B008 (immutable)
) -> DataLoader[Item]:
    """This process's share of the batches of the steps from ``first_step`` to the end of the run."""
    per_step = settings.batch_size * settings.accumulate * processes.world
    stream = TrainingStream(data.train, total_steps * per_step, settings.seed, per_step)
    return DataLoader(
        stream,
        batch_size=settings.batch_size,
        sampler=RankShare(first_step * per_step, len(stream), settings.batch_size, processes),
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        pin_memory=settings.device != "cpu" and torch.cuda.is_available(),
    )


def build_trainer(
    settings: TrainSettings,
    folder: Path,
    metrics_file: str,
    device: str,
    total_steps: int,
    resume_step: int | None,
    callbacks: list[Callback],
    processes: Processes = Processes(),  # noqa: B008 (immutable)
) -> Trainer:
    """A Lightning trainer that only trains and logs; validation and saving are the callbacks' work."""
    loggers: list[Logger] = []
    if processes.rank == 0:
        loggers.append(CsvLog(folder / metrics_file, COLUMNS, resume_step))
    if processes.rank == 0 and find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
    with _quiet():
        return Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=processes.local,
            num_nodes=processes.world // processes.local,
            strategy=pick_strategy(settings, processes),
            use_distributed_sampler=False,
            precision=PRECISIONS[settings.precision],  # type: ignore[arg-type]
            max_steps=total_steps,
            max_epochs=-1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.gradient_clip,
            log_every_n_steps=min(settings.log_every, total_steps),
            logger=loggers,
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )


def run(trainer: Trainer, module: SegmentationModule, loader: DataLoader[Item], state: Path | None) -> None:
    """Train, from ``state`` where given.

    Raises:
        KeyboardInterrupt: as usual; Lightning turns it into an exit with status 1.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        with _quiet():
            trainer.fit(module, loader, ckpt_path=state, weights_only=True)
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' hints about loaders, hardware and sharding off the screen; their errors still show."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
