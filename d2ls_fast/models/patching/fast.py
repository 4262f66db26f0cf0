"""The base of every replacement, and how a live module takes one on and is given back."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

from torch import Tensor, nn


class Fast(nn.Module):
    """A module of somebody else's that computes one of its methods with our operators.

    A replacement derives from this class and defines the method, :meth:`find` and :meth:`example`. A module takes it on
    by becoming an instance of a class that derives from the replacement and from the module's own class: parameters,
    buffers, sub-modules, hooks and the state dict's keys stay as they are, ``isinstance`` holds, and ``super()`` is the
    module's own method, to fall back on. Replacements have no ``__init__``; what they keep lies beside the module's
    registered members and is copied with it.
    """

    switch: ClassVar[str]
    """The argument of :func:`~d2ls_fast.models.patching.patch` that this replacement belongs to."""
    method: ClassVar[str] = "forward"
    """The method that is replaced."""
    original: ClassVar[type[nn.Module]]
    """The module's own class."""

    _fast_parts: tuple[nn.Module, ...]
    _fast_kept: Any

    @classmethod
    def find(cls, module: nn.Module) -> str | bool:
        """Whether ``module`` has the structure: False for another kind of module, or the reason why it must stay.

        Decided by names and shapes; :func:`~d2ls_fast.models.patching.examine.examine` then compares the results.
        """
        raise NotImplementedError

    @classmethod
    def example(cls, module: nn.Module, random: Callable[..., Tensor]) -> Sequence[Any]:
        """Small arguments for the method, to compare both results with; ``random(*shape)`` draws them.

        ``module`` is a copy that may be changed, with random weights.
        """
        raise NotImplementedError

    @classmethod
    def stand_ins(cls, module: nn.Module) -> dict[int, Any]:
        """Objects, by the ``id`` of what they stand for, that the copy for the comparison holds instead."""
        return {}

    @classmethod
    def bypassed(cls, module: nn.Module) -> tuple[nn.Module, ...]:
        """The modules that are no longer called, only their parameters used: by default all within."""
        return tuple(module.modules())[1:]

    @classmethod
    def keep(cls, module: nn.Module) -> Any:
        """What the replacement keeps as ``self._fast_kept``, such as our own module around the same parameters."""
        return None

    @classmethod
    def swap_parts(cls, module: nn.Module, kept: Any) -> None:
        """Let sub-modules take replacements on as well; ``kept`` is what :meth:`keep` made."""

    def as_found(self) -> bool:
        """Whether the parts are still those that were found and nobody listens to them, else ``super()`` must do it.

        Adapters put in place of a part, and hooks on it, come later at times.
        """
        parts = self.bypassed(self)
        found = self._fast_parts
        return len(parts) == len(found) and all(
            part is then and not listened_to(part) for part, then in zip(parts, found, strict=True)
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class was made at run time and has no name to be found under: copies and pickles make it anew.
        function, arguments, *rest = cast("tuple[Any, ...]", super().__reduce_ex__(protocol))
        if type(self) in arguments:
            function, arguments = _remake, (type(self).__mro__[1], self.original)
        return (function, arguments, *rest)


def _remake(replacement: type[Fast], original: type[nn.Module]) -> nn.Module:
    made = fast_class(replacement, original)
    return made.__new__(made)


def swap(module: nn.Module, replacement: type[Fast]) -> None:
    """Let ``module`` take the replacement on."""
    parts, kept = replacement.bypassed(module), replacement.keep(module)
    module.__class__ = fast_class(replacement, type(module))
    # Past nn.Module.__setattr__: these are not sub-modules.
    module.__dict__["_fast_parts"] = parts
    module.__dict__["_fast_kept"] = kept
    replacement.swap_parts(module, kept)


def restore(module: nn.Module) -> None:
    """Give ``module`` its own class back; nothing of the replacement stays."""
    if isinstance(module, Fast):
        module.__class__ = type(module).original  # type: ignore[assignment]
        del module.__dict__["_fast_parts"], module.__dict__["_fast_kept"]


_CLASSES: dict[tuple[type[Fast], type[nn.Module]], type[nn.Module]] = {}


def fast_class(replacement: type[Fast], original: type[nn.Module]) -> type[nn.Module]:
    """The class that a module of class ``original`` takes on: one for each pair, so that copies share it."""
    pair = (replacement, original)
    if pair not in _CLASSES:
        members: dict[str, Any] = {
            "__module__": original.__module__,
            "__qualname__": original.__qualname__,
            "__doc__": original.__doc__,
            "original": original,
        }
        renamed = _renamed(replacement, original)
        if renamed is not None:
            members[replacement.method] = renamed
        # Under its own name: wrapping policies and reports look at names.
        _CLASSES[pair] = types.new_class(original.__name__, pair, exec_body=lambda space: space.update(members))
    return _CLASSES[pair]


def other_arguments(module: nn.Module, replacement: type[Fast]) -> str | None:
    """Why the replacement's method cannot be called as the module's own is; None where it can."""
    theirs = getattr(type(module), replacement.method, None)
    if theirs is None:
        return f"it has no method {replacement.method}"
    wanted, given = _names(getattr(replacement, replacement.method)), _names(theirs)
    if wanted is None or given is None or len(wanted) == len(given):
        return None
    return f"its {replacement.method} takes {len(given)} arguments, not {len(wanted)}"


def _renamed(replacement: type[Fast], original: type[nn.Module]) -> Callable[..., Any] | None:
    """The replacement's method under the argument names that the original's callers use, where they differ."""
    fast = getattr(replacement, replacement.method)
    wanted, given = _names(fast), _names(getattr(original, replacement.method))
    if wanted is None or given is None or wanted == given:
        return None
    ours = dict(zip(given, wanted, strict=True))

    @functools.wraps(getattr(original, replacement.method))
    def method(self: Fast, *arguments: Any, **named: Any) -> Any:
        return fast(self, *arguments, **{ours.get(name, name): value for name, value in named.items()})

    return method


def _names(method: Callable[..., Any]) -> list[str] | None:
    """The arguments after self; None where there is a ``*`` or ``**`` that takes any."""
    parameters = list(inspect.signature(method).parameters.values())[1:]
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return None
    return [p.name for p in parameters]


def listened_to(module: nn.Module) -> bool:
    """Whether hooks, or a ``forward`` of the instance's own, would notice that the module is not called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )
