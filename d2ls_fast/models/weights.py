"""Weight files of strangers, opened without running code from them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

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
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: not a PyTorch weight file, or one that holds more than tensors and plain data, which is never"
            " run; save its state_dict() alone, best as .safetensors"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: not a readable PyTorch weight file ({first_line}); fetch it again") from None
    return unwrap_state_dict(content, origin=str(path))


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
