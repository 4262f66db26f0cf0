"""What a patched model computes with our operators, and what it does not, and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from d2ls_fast.models.patching.examine import examine
from d2ls_fast.models.patching.fast import Fast
from d2ls_fast.models.patching.recognisers import RECOGNISERS


@dataclass(frozen=True)
class PatchReport:
    """The parts of a model that were recognised.

    Attributes:
        replaced: the switch of :func:`~d2ls_fast.models.patching.patch` by the dotted name of each module that computes
            with our operators; the model itself is ``""``.
        left_alone: the reason by the dotted name of each module that looks like such a part and stays as it is.
    """

    replaced: Mapping[str, str]
    left_alone: Mapping[str, str]


def patch_report(model: nn.Module) -> PatchReport:
    """What of ``model`` is replaced now, and what is left alone, with the reasons; nothing is changed."""
    replaced, left_alone = {}, {}
    for name, module in model.named_modules():
        if isinstance(module, Fast):
            replaced[name] = module.switch
        else:
            found = recognise(module)
            if isinstance(found, str):
                left_alone[name] = found
            elif found is not None:
                left_alone[name] = f"patch(..., {found.switch}=True) would replace it"
    return PatchReport(replaced, left_alone)


def recognise(module: nn.Module, switches: Collection[str] | None = None) -> type[Fast] | str | None:
    """The replacement for a module, the reason why it must stay, or None for a module of no concern.

    ``switches`` are those that are on; None for all.
    """
    reasons = []
    for replacement in RECOGNISERS:
        if switches is not None and replacement.switch not in switches:
            continue
        found = examine(module, replacement)
        if found is True:
            return replacement
        if isinstance(found, str):
            reasons.append(f"{replacement.switch}: {found}")
    return "; ".join(reasons) or None
