"""Weight files of strangers, opened without running code from them."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from d2ls_fast.errors import UserError

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or a PyTorch checkpoint, in the file's order.

    PyTorch files go through ``torch.load(weights_only=True)``. A state dict inside a training checkpoint (under
    ``state_dict``, ``model`` and the like) is found, and the prefix ``module.`` that wrappers leave is removed.

    Raises:
        UserError: the file is missing, damaged, holds more than plain data, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weight file; give the path of a .safetensors or .pth file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({error}); fetch it again") from None
    _refuse_inflated(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(_refusal(path)) from None
    except Exception as error:  # a damaged or hostile pickle can raise anything
        first_line = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: not a readable PyTorch weight file ({first_line}); fetch it again") from None
    state = unwrap_state_dict(content, origin=str(path))
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise UserError(f"{path}: key {name!r} claims more numbers than the file holds; fetch it again")
    return state


def _refuse_inflated(path: Path) -> None:
    """PyTorch's archives are stored as they are: one that unpacks to more than its size was made to fill memory."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: not a readable PyTorch weight file ({error}); fetch it again") from None
    if unpacked > path.stat().st_size:
        raise UserError(
            f"{path}: unpacks to {unpacked} bytes from {path.stat().st_size}, which PyTorch's uncompressed files never"
            " do; save it again with torch.save"
        )


def _refusal(path: Path) -> str:
    """Why a file that ``weights_only`` refuses is refused, with the code it asks for where that can be read."""
    try:
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the list is a courtesy; whatever keeps it from being read changes nothing
        wanted = []
    code = f" (it asks for {', '.join(sorted(wanted)[:3])})" if wanted else ""
    return (
        f"{path}: not a PyTorch weight file, or one that holds more than tensors and plain data{code}, which is never"
        " run; save its state_dict() alone, best as .safetensors; if you trust its source:"
        f' python -c "import torch; c = torch.load({str(path)!r}, weights_only=False);'
        " torch.save(c.get('state_dict', c), 'weights.pth')\""
    )


def fitting(
    module: nn.Module,
    state: Mapping[str, Tensor],
    name_of: Callable[[str], str],
    origin: str,
    owner: str,
    remedy: str,
    shape_of: Callable[[str, Tensor], torch.Size] = lambda key, ours: ours.shape,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Pair every weight of ``module`` with its value in ``state``; nothing is copied yet (see :func:`put`).

    Args:
        name_of: of one of the module's weights, the key in ``state``.
        origin, owner, remedy: for messages: where the state is from, what needs it, and what to do about a misfit.
        shape_of: of a key and its weight, the value's shape, of as many numbers as the weight.

    Returns:
        key of ``state`` -> (weight, value in the weight's shape).

    Raises:
        UserError: a key is missing or has another shape.
    """
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name, ours in module.state_dict(keep_vars=True).items():
        key = name_of(name)
        if key not in state:
            raise UserError(f"{origin}: key {key!r} is missing; {remedy}")
        wanted = shape_of(key, ours)
        if state[key].shape != wanted:
            raise UserError(
                f"{origin}: key {key!r} has shape {list(state[key].shape)}, {owner} needs {list(wanted)}; {remedy}"
            )
        pairs[key] = ours, state[key].reshape(ours.shape)
    return pairs


def put(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy the values of :func:`fitting` into their weights, cast to the weights' types."""
    with torch.no_grad():
        for ours, value in pairs:
            ours.copy_(value)


def unwrap_state_dict(content: Any, origin: str) -> dict[str, Tensor]:
    """The flat name-to-tensor mapping in ``content``: a state dict, or a training checkpoint that holds one.

    Raises:
        UserError: there is none; the message starts with ``origin``.
    """
    if isinstance(content, Mapping):
        for wrapper in _WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
        tensors = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
        if tensors:
            return tensors
    raise UserError(f"{origin}: holds no model weights; expected a mapping of names to tensors")
