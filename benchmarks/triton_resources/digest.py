"""A digest of a Triton kernel's source: of its own code and of all device code and constants that it uses."""

from __future__ import annotations

import functools
import hashlib
import inspect
import io
import tokenize
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl

_LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def digest(kernel: Any, more: Sequence[object]) -> str:
    """Sixteen hexadecimal digits; comments, docstrings, line breaks and where the code stands do not count.

    Args:
        kernel: a function made by ``triton.jit``.
        more: what else makes up the binary; its ``repr`` counts.
    """
    return hashlib.sha256(f"{source(kernel)} {more!r}".encode()).hexdigest()[:16]


@functools.cache
def source(kernel: Any) -> str:
    """The code of the kernel, of the device functions that it calls, and the constants that they use."""
    parts: dict[str, str] = {}
    _collect(kernel, parts)
    return repr(sorted(parts.items()))


def _collect(function: Any, parts: dict[str, str]) -> None:
    python = function.fn
    parts[python.__qualname__] = _code(inspect.getsource(python))
    for name in python.__code__.co_names:
        value = python.__globals__.get(name)
        if isinstance(value, tl.constexpr):
            parts[name] = repr(value.value)
        elif isinstance(value, triton.JITFunction) and value.fn.__qualname__ not in parts:
            _collect(value, parts)


def _code(text: str) -> str:
    """The tokens, with its depth before the first of every statement; no comments, docstrings or line breaks."""
    words, depth, at_start = [], 0, True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        depth += (token.type == tokenize.INDENT) - (token.type == tokenize.DEDENT)
        if token.type == tokenize.NEWLINE:
            at_start = True
        if token.type in _LAYOUT:
            continue
        if not (at_start and token.type == tokenize.STRING):  # a string that starts a statement is a docstring
            words.append(f"{depth}:{token.string}" if at_start else token.string)
        at_start = False
    return " ".join(words)
