"""Settings read from YAML: strict, typed, with the nearest valid key named when one is misspelt."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from d2ls_fast.errors import UserError


class Settings(BaseModel):
    """Base of every settings group: unknown keys are errors, values are immutable once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Settings)
_ALTERNATIVE = re.compile(r"(literal|list|tuple|dict|constrained-\w+|int|float|str|bool|none)(\[.*)?")


def load_settings(kind: type[S], path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> S:
    """Read ``path`` (YAML), apply ``key.sub=value`` overrides and validate the result as ``kind``.

    Raises:
        UserError: the file is missing or not YAML, or a key or value is wrong. One line, naming file and key.
    """
    path = Path(path)
    tree = read_yaml(path)
    for override in overrides:
        _apply_override(tree, override)
    return validate(kind, tree, origin=str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds (an empty file is an empty mapping)."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of a YAML recipe, such as those in configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}); expected a YAML recipe") from None
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({error}); correct the line it names") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping of settings at the top level, found {type(tree).__name__}")
    return tree


def validate(kind: type[S], tree: dict[str, Any], origin: str) -> S:
    """``tree`` as an instance of ``kind``, or a :class:`UserError` that names the first wrong key."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{origin}: {_describe(kind, error)}") from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"override {override!r}: expected key=value, such as optimizer.lr=1e-4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: the value is not valid YAML; quote it") from None
    if isinstance(value, str):
        value = _number_or_text(value)
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"override {override!r}: {parent!r} is not a group of settings")
        node = child
    node[last] = value


def _number_or_text(text: str) -> float | str:
    """YAML 1.1 reads ``1e-4`` as text; people mean the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _describe(kind: type[Settings], error: ValidationError) -> str:
    errors = error.errors()
    key = _key(errors[0]["loc"])
    # Of the alternatives that a key allows, the one which the value came closest to.
    first = max((each for each in errors if _key(each["loc"]).startswith(key)), key=lambda each: len(each["loc"]))
    key = _key(first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}; {_hint(kind, key)}"
    if first["type"] == "missing":
        return f"key {key!r} is required; add it to the recipe or give {key}=VALUE"
    shown = repr(first.get("input"))
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    if first["type"] == "model_type":
        return f"key {key!r} is {shown}: expected a group with the keys {', '.join(_group(kind, key).model_fields)}"
    return f"key {key!r} is {shown}: {first['msg'][0].lower() + first['msg'][1:]}"


def _key(location: tuple[int | str, ...]) -> str:
    """The dotted key of an error; pydantic also names the alternative it tried, which is no part of the key."""
    return ".".join(str(part) for part in location if not _ALTERNATIVE.fullmatch(str(part)))


def _hint(kind: type[BaseModel], key: str) -> str:
    """The valid key nearest to an unknown one: the same name elsewhere, the nearest in its group, the nearest anywhere;
    else the keys of its group."""
    path, _, name = key.rpartition(".")
    group = _group(kind, path)
    elsewhere = {each.rpartition(".")[2]: each for each in sorted(_known_keys(kind), reverse=True)}
    if name in elsewhere:
        return f"did you mean {elsewhere[name]!r}?"
    close = difflib.get_close_matches(name, group.model_fields, n=1, cutoff=0.5)
    if close:
        return f"did you mean {(f'{path}.' if path else '') + close[0]!r}?"
    close = difflib.get_close_matches(name, elsewhere, n=1, cutoff=0.7)
    if close:
        return f"did you mean {elsewhere[close[0]]!r}?"
    return f"known keys{f' of {path!r}' if path else ''}: {', '.join(group.model_fields)}"


def _group(kind: type[BaseModel], path: str) -> type[BaseModel]:
    """The settings group at a dotted path, through lists and optional groups."""
    for part in path.split("."):
        if part in kind.model_fields:
            kind = next(_groups(kind.model_fields[part].annotation), kind)
    return kind


def _groups(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _groups(part)


def _known_keys(kind: type[BaseModel], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for name, field in kind.model_fields.items():
        keys.add(prefix + name)
        if get_origin(field.annotation) is not list:
            for group in _groups(field.annotation):
                keys |= _known_keys(group, f"{prefix}{name}.")
    return keys
