"""Settings of a training run: what a YAML recipe may say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_serializer, field_validator, model_validator

from d2ls_fast.config import Settings
from d2ls_fast.data.config import DataSettings
from d2ls_fast.data.published.settings import Protocol
from d2ls_fast.data.transforms import AugmentSettings
from d2ls_fast.errors import UserError
from d2ls_fast.models.build import PEER_OPTIONS, ModelName

_PACKAGE = "package:"
_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


class ModelSettings(Settings):
    """The network; the names are those of :func:`d2ls_fast.models.model.create_model`.

    ``name`` chooses D2LS or one of its peers (:mod:`d2ls_fast.models.peers`), which heed ``backbone``, ``pretrained``
    and those settings that :data:`d2ls_fast.models.build.PEER_OPTIONS` names, and pass over the rest: one recipe serves
    them all.

    ``pretrained`` is ``false``, ``true`` (timm downloads), the path of a weights file, or ``package:NAME``: the single
    weights file inside the installed Python package NAME.
    """

    name: ModelName = "d2ls"
    backbone: str
    pretrained: bool | str = False
    stages: int = Field(3, ge=1)
    embed_dim: int = Field(256, ge=1)
    num_heads: int = Field(8, ge=1)
    query_ratio: int = Field(4, ge=1)
    prototypes: int = Field(1, ge=1)
    prototype_reduction: Literal["logsumexp", "max", "mean"] = "logsumexp"
    alternating: bool = True
    dynamic: bool = True
    auxiliary: bool = True
    contrastive: bool = True

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for ``build_model``, with ``pretrained`` resolved to a bool or an existing file."""
        options = self.model_dump(exclude={"name"})
        if self.name != "d2ls":
            options = {key: options[key] for key in ("backbone", *PEER_OPTIONS[self.name])}
        return {"name": self.name, **options, "pretrained": resolve_weights(self.pretrained)}


class NceSettings(Settings):
    """Pixel-dictionary InfoNCE; the names are those of :class:`d2ls_fast.nn.contrast.PixelDictionaryInfoNCE`."""

    temperature: float = Field(0.1, gt=0)
    direction: Literal["pixels", "dictionary", "both"] = "pixels"
    balanced: bool = False


class LossSettings(Settings):
    """Weights of the loss terms; the names are those of :class:`d2ls_fast.nn.losses.D2LSLoss`.

    ``class_weights: frequencies`` counts the training masks first, and balances the classes as ``frequency_form`` says:
    see :func:`d2ls_fast.training.class_weights.frequency_weights`. The settings that a run writes hold the numbers.
    The ``nce`` group is that of ``contrastive: pixels``.
    """

    smoothing: float = Field(0.05, ge=0, lt=1)
    dice_weight: float = Field(1.0, ge=0)
    dice_smooth: float = Field(0.05, ge=0)
    auxiliary_weight: float = Field(0.4, ge=0)
    intermediate_weight: float = Field(0.0, ge=0)
    contrastive: Literal["ratio", "pixels", "none"] = "ratio"
    contrastive_weight: float = Field(1.0, ge=0)
    nce: NceSettings = NceSettings()
    diversity_weight: float = Field(0.0, ge=0)
    align: bool = False
    class_weights: Literal["frequencies"] | list[Annotated[float, Field(ge=0)]] | None = None
    frequency_form: Literal["median", "inverse"] = "median"
    compat: Literal["corrected", "release"] = "corrected"


class LookaheadSettings(Settings):
    """Lookahead around the optimizer: every ``steps`` steps the weights go back to ``alpha`` of the way they came."""

    steps: int = Field(5, ge=1)
    alpha: float = Field(0.5, gt=0, le=1)


class OptimizerSettings(Settings):
    """AdamW. The backbone learns at ``lr * backbone_lr``; norms, biases and other vectors are not decayed unless
    ``decay_vectors`` says so."""

    lr: float = Field(1e-3, gt=0)
    backbone_lr: float = Field(1.0, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    decay_vectors: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    lookahead: LookaheadSettings | None = None


class ScheduleSettings(Settings):
    """Learning rate over the run: linear warm-up, then cosine or polynomial decay to ``final`` times the base rate."""

    kind: Literal["cosine", "poly", "constant"] = "cosine"
    warmup: int = Field(0, ge=0, description="optimizer steps of linear warm-up")
    final: float = Field(0.0, ge=0, le=1)
    power: float = Field(0.9, gt=0, description="exponent of the polynomial decay")
    per_epoch: bool = Field(False, description="the rate changes at the start of an epoch only, not at every step")


class TrainSettings(Settings):
    """A whole recipe. The length is given in optimizer ``steps`` or in ``epochs`` over the training set, not both."""

    name: str = "d2ls"
    seed: int = Field(42, ge=0)
    output: Path = Field(Path("runs/d2ls"), description="folder that receives everything the run writes")

    protocol: Protocol = Field("honest", description="which published subsets train, choose the model and score it")

    model: ModelSettings
    data: DataSettings
    augment: AugmentSettings = AugmentSettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()

    steps: int | None = Field(None, ge=1)
    epochs: int | None = Field(None, ge=1)
    batch_size: int = Field(8, ge=1)
    accumulate: int = Field(1, ge=1, description="batches whose gradients make one optimizer step")
    evaluate_every: int | None = Field(None, ge=1, description="optimizer steps between validations; null: each epoch")
    checkpoint_every: int | None = Field(
        None, ge=1, description="optimizer steps between saved states of the run; null: at validations only"
    )
    exclude_from_means: list[str] = Field([], description="class names that mean IoU and mean F1 leave out")

    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="processes on this machine, one per GPU; auto: those that torchrun started, else one"
    )
    strategy: Literal["auto", "ddp", "fsdp"] = Field("auto", description="how several processes share the work")
    precision: Literal["32", "bf16", "fp16"] = "32"
    compile: bool = False
    channels_last: bool = True
    gradient_clip: float | None = Field(1.0, gt=0)
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the averaged weights that are evaluated and kept")
    workers: int = Field(0, ge=0)
    log_every: int = Field(10, ge=1)
    gallery: int = Field(6, ge=0, description="worst and best tiles that the report shows; 0 spares a validation pass")

    @field_validator("data", mode="after")
    @classmethod
    def _data_under_the_protocol(cls, data: DataSettings, info: ValidationInfo) -> DataSettings:
        return data.under(info.data["protocol"]) if "protocol" in info.data else data

    @field_serializer("data")
    def _data_as_given(self, data: DataSettings) -> dict[str, Any]:
        """In the ``data`` group null means not given: left out, so that dumped settings read back as they were."""
        return data.model_dump(mode="json", exclude_none=True)

    @model_validator(mode="before")
    @classmethod
    def _precision_is_text(cls, values: Any) -> Any:
        """YAML reads ``precision: 32`` as a number."""
        if isinstance(values, dict) and values.get("precision") in (32, 32.0):
            values = values | {"precision": "32"}
        return values

    @model_validator(mode="after")
    def _one_length(self) -> TrainSettings:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs, not both")
        return self


def resolve_weights(pretrained: bool | str) -> bool | str:
    """``package:NAME`` as the path of the single weights file inside that installed package; the rest unchanged.

    The package is located, not imported: none of its code runs.

    Raises:
        UserError: the package is not installed, or holds no or several weights files.
    """
    if isinstance(pretrained, bool) or not pretrained.startswith(_PACKAGE):
        return pretrained
    name = pretrained.removeprefix(_PACKAGE)
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"model.pretrained={pretrained}: no installed Python package {name!r};"
            f" pip install {name.replace('_', '-')}, or give a weights file, or false"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = sorted(path for path in folder.rglob("*") if path.suffix in _WEIGHT_SUFFIXES)
    if len(files) != 1:
        raise UserError(f"{folder}: expected one weights file, found {len(files)}; give the path of the one you mean")
    return str(files[0])
