"""The graph of a model, from torch.export."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from d2ls_fast.backends import backend
from d2ls_fast.errors import UserError
from d2ls_fast.export.manifest import SMALLEST, Operators, Precision
from d2ls_fast.export.same_padding import fixed_same_padding
from d2ls_fast.models.base import STRIDE, SegmentationModel, evaluating

_MOST_IMAGES, _LONGEST_SIDE = 4096, 65536
_EXAMPLE = (2, 96, 160)  # three different numbers, none of which is special
# Where a node comes from in the source: of no use to the graph, but paths of this machine.
_ORIGIN = ("stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack", "from_node", "custom")


class _Logits(nn.Module):
    """``model`` as what it computes in evaluation mode, in the precision of the file."""

    def __init__(self, model: SegmentationModel, precision: Precision) -> None:
        super().__init__()
        self.model = model
        self.mixed = precision == "bf16"

    def forward(self, images: Tensor) -> Tensor:
        if not self.mixed:
            return self.model(images)
        with torch.autocast(images.device.type, torch.bfloat16):
            return self.model(images).float()


def trace(
    model: SegmentationModel, operators: Operators, precision: Precision, shape: tuple[int, int, int] | None
) -> ExportedProgram:
    """The program ``images -> logits`` of ``model`` on its device; see :class:`~d2ls_fast.export.manifest.Manifest`.

    Args:
        model: D2LS or a peer.
        operators: ``plain`` traces the folded PyTorch form, ``fused`` leaves this package's operators in the graph.
        precision: ``fp32``, or ``bf16`` under autocast.
        shape: (B, H, W), sides multiples of 32; None for any batch and size.

    Raises:
        UserError: fused operators cannot be had on this device, or torch.export cannot follow the model.
    """
    parameter = next(model.parameters())
    if operators == "fused":
        _check_fused(parameter.device.type)
    if shape is None and "swin" in model.config["backbone"]:
        # It pads to its windows by formulas of the size, nested through all blocks: minutes without a result.
        raise UserError(
            f"{describe(model)}: a Swin backbone is exported for one size; give --static, --batch and --size"
        )
    batch, height, width = shape or _EXAMPLE
    example = torch.zeros(batch, model.backbone.in_chans, height, width, device=parameter.device)
    sides = {
        axis: STRIDE * Dim(name, min=SMALLEST // STRIDE, max=_LONGEST_SIDE // STRIDE)
        for axis, name in ((2, "rows"), (3, "columns"))
    }
    dimensions = None if shape else {"images": {0: Dim("batch", min=1, max=_MOST_IMAGES), **sides}}
    try:
        back_end = "auto" if operators == "fused" else "torch"
        with evaluating(model), torch.no_grad(), backend(back_end), fixed_same_padding(model):
            logits = _Logits(model, precision).eval()
            program = torch.export.export(logits, (example,), dynamic_shapes=dimensions, strict=False)
    except Exception as error:  # torch.export has no one type for what it cannot follow
        remedy = "give --static with --batch and --size" if shape is None else "choose another backbone"
        raise UserError(
            f"{describe(model)}: torch.export cannot follow this model ({reason(error)}); {remedy}"
        ) from error
    for node in nodes(program):
        for key in _ORIGIN:
            node.meta.pop(key, None)
    return program


def nodes(program: ExportedProgram) -> Iterator[fx.Node]:
    """All nodes of a program, those of graphs within it too."""
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            yield from module.graph.nodes


def own_operators(program: ExportedProgram) -> list[str]:
    """The names of this package's operators in a program."""
    found: set[str] = set()
    for node in nodes(program):
        target: Any = node.target
        if isinstance(target, torch._ops.OpOverload) and target.namespace == "d2ls_fast":
            found.add(target._opname)
    return sorted(found)


def describe(model: SegmentationModel) -> str:
    """The network and its backbone, for messages."""
    return f"{model.config.get('name', 'd2ls')} on {model.config['backbone']}"


def reason(error: BaseException) -> str:
    """The first sentence of a library's error, short enough for a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    return first if len(first) <= 200 else first[:199] + "…"


def _check_fused(device: str) -> None:
    from d2ls_fast.backends import backends

    wanted = "cpu" if device == "cpu" else "triton"
    state = backends()[wanted]
    if state != "available":
        raise UserError(f"--operators fused: {state}; use --operators plain")
