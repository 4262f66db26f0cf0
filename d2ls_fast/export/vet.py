"""Is a torch.export program nothing but tensors and operators?

``torch.export.load`` trusts its file: it unpickles what is marked as pickled, evaluates expressions of sizes, writes
names into Python source that it runs, calls any function below ``torch`` by name, and loads native code that lies
beside the program. So the archive is read here as plain data first. Only what an export of this package holds may be
in it, and PyTorch is given a new archive of just that.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from d2ls_fast.errors import UserError
from d2ls_fast.export.manifest import KEY

_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id|models/model\.json"
    rf"|extra/{KEY}|data/sample_inputs/model\.pt|data/(weights|constants)/((weight|tensor)_\d+|model\.pt)"
    r"|data/weights/model_weights_config\.json|data/constants/model_constants_config\.json"
)
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_SYMBOL_OR_NUMBER = re.compile(r"[A-Za-z_]\w*|[\d.e+-]+", re.ASCII)
_DOTTED = re.compile(r"[\w.]*", re.ASCII)
_PLAIN_TEXT = re.compile(r"[\w ,.>+:-]*", re.ASCII)
_FUNCTIONS = re.compile(
    r"_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|torch\.sym_(float|int|max|min|not|ite)|math\.(ceil|floor|trunc)"
    r"|torch\.ops\.higher_order\.wrap_with_(autocast|set_grad_enabled)"
)
_OPERATOR = re.compile(r"torch\.ops\.(aten|d2ls_fast)\.(\w+)\.(\w+)", re.ASCII)
_SYMPY = re.compile(
    "Symbol|Integer|Float|Rational|Mul|Add|Pow|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|ModularIndexing|CeilToInt"
    "|FloorToInt|TruncToInt|IntTrueDiv|FloatTrueDiv|FloatPow|PowByNatural|ToFloat|Max|Min|Where|Eq|Ne|Lt|Le|Gt|Ge"
    "|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|And|Or|Not|true|false"
    "|min|max"  # in guards as torch 2.11 writes them
)
_ARITHMETIC = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop)
_TREES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}


def vetted_program(path: Path) -> io.BytesIO:
    """A copy of the torch.export program ``path`` in memory, which PyTorch may load.

    Raises:
        UserError: there is something in it that PyTorch would run, or might.
    """
    clean = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(clean, "w", zipfile.ZIP_STORED) as target:
        seen: set[str] = set()
        for info in source.infolist():
            member = info.filename.partition("/")[2]
            # Packed members may be larger than memory, and of two with one name PyTorch may take the other.
            if not _MEMBERS.fullmatch(member) or member in seen or info.compress_type != zipfile.ZIP_STORED:
                _refuse(path, f"the member {info.filename!r}")
            seen.add(member)
            try:
                content = source.read(info)
            except (zipfile.BadZipFile, EOFError, OSError) as error:
                raise UserError(f"{path}: damaged ({error}); copy the file again") from None
            target.writestr(f"program/{member}", _vetted(path, member, content))
    clean.seek(0)
    return clean


def _vetted(path: Path, member: str, content: bytes) -> bytes:
    if member.endswith(".json"):
        try:
            value = json.loads(content)
        except ValueError as error:
            raise UserError(f"{path}: {member} is damaged ({error}); copy the file again") from None
        _walk(path, "", value)
        return json.dumps(value).encode()
    if member.endswith(".pt") and content:
        try:  # PyTorch unpickles without restriction what does not load this way
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception:
            _refuse(path, f"pickled objects in {member}")
    return content


def _walk(path: Path, key: str, value: Any) -> None:
    """Refuse any string in the JSON ``value`` (under ``key``) that is more than a name or arithmetic."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not _DOTTED.fullmatch(name):
                _check_arithmetic(path, name)
            if name == "use_pickle" and item is not False:
                _refuse(path, "pickled weights")
            _walk(path, name, item)
    elif isinstance(value, list):
        for item in value:
            _walk(path, key, item)
    elif isinstance(value, str) and not _is_harmless(key, value):
        _check_arithmetic(path, value)


def _is_harmless(key: str, text: str) -> bool:
    if key in ("in_spec", "out_spec"):
        return text == "" or _is_tree(text)
    if key in ("target", "as_operator"):
        return bool(_FUNCTIONS.fullmatch(text)) or _is_operator(text)
    if key in ("name", "as_name", "forward_arg_names"):  # become names in Python source
        return text == "" or bool(_NAME.fullmatch(text))
    if key in ("expr_str", "guards_code"):
        return False
    return bool((_PLAIN_TEXT if key in ("as_string", "torch_version") else _DOTTED).fullmatch(text))


def _is_operator(target: str) -> bool:
    """Whether it is a tensor operator that touches no file."""
    match = _OPERATOR.fullmatch(target)
    if match is None:
        return False
    namespace, name, overload = match.groups()
    try:
        operator = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    except AttributeError:
        return False
    schema = operator._schema
    computes = bool(schema.returns) or name.startswith("_assert_")
    return computes and not any("file" in argument.name for argument in schema.arguments)


def _is_tree(text: str) -> bool:
    """Whether it is a nesting of tuples, lists and dictionaries, as PyTorch writes those down."""

    def plain(tree: Any) -> bool:
        return (
            tree["type"] in _TREES
            and tree["context"] in (None, "null", "[]")
            and all(map(plain, tree["children_spec"]))
        )

    try:
        _, tree = json.loads(text)
        return plain(tree)
    except (ValueError, TypeError, KeyError):
        return False


def _check_arithmetic(path: Path, text: str) -> None:
    """Refuse ``text`` unless it is arithmetic of sizes, with sympy's functions and ``L['images'].size()``."""
    rules: dict[type[ast.AST], Callable[[Any], bool]] = {
        ast.Constant: lambda node: (
            isinstance(node.value, (int, float)) or bool(_SYMBOL_OR_NUMBER.fullmatch(str(node.value)))
        ),
        ast.Name: lambda node: bool(_SYMPY.fullmatch(node.id) or re.fullmatch(r"L|torch|[suz]\d+", node.id)),
        ast.Call: lambda node: isinstance(node.func, ast.Attribute) or bool(_SYMPY.fullmatch(node.func.id)),
        ast.Attribute: lambda node: node.attr in ("size", "sym_max", "sym_min"),
        ast.Subscript: lambda node: isinstance(node.slice, ast.Constant),
        ast.keyword: lambda node: isinstance(node.value, ast.Constant),
    }
    free = (*_ARITHMETIC, ast.cmpop, ast.expr_context)
    try:
        for node in ast.walk(ast.parse(text, mode="eval")):
            rule = rules.get(type(node))
            if not isinstance(node, free) and (rule is None or not rule(node)):
                _refuse(path, repr(text[:60]))
    except (SyntaxError, ValueError, AttributeError, RecursionError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        _refuse(path, repr(text[:60]))


def _refuse(path: Path, what: str) -> None:
    raise UserError(
        f"{path}: holds {what}, which opening it could run as code;"
        " if you know who made it, say so with load_exported(path, trust=True)"
    )
