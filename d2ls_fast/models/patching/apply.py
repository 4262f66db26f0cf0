"""patch and unpatch."""

from __future__ import annotations

import functools
import warnings
from typing import Any, TypeVar, overload

from torch import nn

from d2ls_fast.errors import UserError
from d2ls_fast.models.patching.fast import Fast, restore, swap
from d2ls_fast.models.patching.report import recognise

_Model = TypeVar("_Model", bound=nn.Module)

_INIT = "_d2ls_fast_init"
"""Where a patched class keeps the ``__init__`` it defined itself, None where it inherited one."""


@overload
def patch(
    model: type[_Model],
    *,
    interaction: bool = True,
    neck: bool = True,
    dictionary: bool = True,
    classification: bool = True,
    two_way: bool = True,
) -> type[_Model]: ...
@overload
def patch(
    model: _Model,
    *,
    interaction: bool = True,
    neck: bool = True,
    dictionary: bool = True,
    classification: bool = True,
    two_way: bool = True,
) -> _Model: ...
def patch(
    model: Any,
    *,
    interaction: bool = True,
    neck: bool = True,
    dictionary: bool = True,
    classification: bool = True,
    two_way: bool = True,
) -> Any:
    """Let somebody else's model compute its parts with our operators, in place.

    Parts are recognised by the names and shapes of their sub-modules and by what they compute on a small random input,
    never by class or import path. Parameters, state dict, optimizers and hooks on the parts themselves stay as they
    are; results are the same, in training as well. A part that cannot be replaced is left alone, and a warning names
    it: see :func:`~d2ls_fast.models.patching.patch_report`. Copies and pickles of a patched model are patched; opening
    such a pickle needs this package, so unpatch what is to be opened without it.

    Args:
        model: a model, wrapped (DDP, torch.compile) or not, or a class, whose instances are then patched as they are
            made. Patching again is harmless and adds what was switched off before.
        interaction: the released D2LS model's alternating cross-attention, with the last look.
        neck: its linear layers, upsampling and fusing convolution.
        dictionary: its mixture of dictionary entries.
        classification: its upsampler, hypernetwork and their product.
        two_way: the two-way transformer of the SAM family's mask decoders (``transformers``' Sam, Sam2 and relatives).

    Returns:
        ``model`` itself.

    Warns:
        UserWarning: parts were left alone; or a patched class made an instance with nothing to replace.

    Raises:
        UserError: nothing in the model could be replaced, or all switches are off.
    """
    given = {
        "interaction": interaction,
        "neck": neck,
        "dictionary": dictionary,
        "classification": classification,
        "two_way": two_way,
    }
    switches = frozenset(name for name, on in given.items() if on)
    if not switches:
        raise UserError(f"patch: all switches are off; turn one on: {', '.join(given)}")
    if isinstance(model, type):
        _patch_class(model, switches)
        return model
    replaced, left_alone = _patch_instance(model, switches)
    if not replaced:
        looked_like = f", only looks like it: {left_alone}" if left_alone else ""
        raise UserError(
            f"patch: nothing in {type(model).__name__} is a part that can be replaced{looked_like}; give a D2LS model"
            " with the released names of modules (decoder.interactor, linear_c, ...), whole or in part"
        )
    if left_alone:
        warnings.warn(f"patch left alone {left_alone}", UserWarning, stacklevel=2)
    return model


@overload
def unpatch(model: type[_Model]) -> type[_Model]: ...
@overload
def unpatch(model: _Model) -> _Model: ...
def unpatch(model: Any) -> Any:
    """Undo :func:`patch`, in place: the model is what it was, its parameters as they are now.

    Of a class: instances made from now on are not patched; those made before stay as they are.
    """
    if isinstance(model, type):
        _unpatch_class(model)
    else:
        for module in list(model.modules()):
            restore(module)
    return model


def _patch_instance(model: nn.Module, switches: frozenset[str]) -> tuple[bool, str]:
    """Whether anything is replaced now, and what looked like a part and stays, with the reasons."""
    replaced, left_alone = False, []
    for name, module in list(model.named_modules()):
        if isinstance(module, Fast):
            replaced = True
            continue
        found = recognise(module, switches)
        if isinstance(found, str):
            left_alone.append(f"{name or 'the model itself'} ({found})")
        elif found is not None:
            swap(module, found)
            replaced = True
    return replaced, ", ".join(left_alone)


def _patch_class(cls: type[nn.Module], switches: frozenset[str]) -> None:
    _unpatch_class(cls)
    own, inherited = cls.__dict__.get("__init__"), cls.__init__

    @functools.wraps(inherited)
    def __init__(self: nn.Module, *arguments: Any, **named: Any) -> None:
        inherited(self, *arguments, **named)
        replaced, left_alone = _patch_instance(self, switches)
        if not replaced or left_alone:
            found = f"left alone {left_alone}" if left_alone else "found nothing to replace"
            warnings.warn(f"patch {found} in this {type(self).__name__}", UserWarning, stacklevel=2)

    setattr(cls, _INIT, own)
    cls.__init__ = __init__  # type: ignore[method-assign]


def _unpatch_class(cls: type[nn.Module]) -> None:
    if _INIT not in cls.__dict__:
        return
    own = cls.__dict__[_INIT]
    if own is None:
        del cls.__init__
    else:
        cls.__init__ = own  # type: ignore[method-assign]
    delattr(cls, _INIT)
