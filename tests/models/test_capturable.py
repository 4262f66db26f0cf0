"""Nothing in inference is forbidden in a CUDA graph: no result is waited for, nothing comes from the host's memory.

Without a GPU: the model runs on fake CUDA tensors, which have shapes and no values, so reading one fails by itself; of
our own operators the Triton launchers are run, all but the launches. A graph on a GPU is tested in test_graphed.py.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import d2ls_fast as d2
from d2ls_fast.backends.base import Support

CSRC = Path(__file__).parents[2] / "csrc" / "cuda"
_LAUNCHERS = {
    "attend_triton": ("attend", "_triton_forward"),
    "refine_attend_triton": ("refine_attend", "_triton_refine_attend"),
    "refine_triton": ("refine_attend", "_triton_refine"),
    "dictionary_step": ("dictionary_step", "_triton_forward"),
    "fuse_pyramid_triton": ("fuse_pyramid", "_triton_forward"),
    "classify_labels_triton": ("classify", "_triton_labels"),
}
# By their modules' names: the package gives the functions of the same names.
LAUNCHERS = {
    operator: getattr(importlib.import_module(f"d2ls_fast.ops.{module}"), name)
    for operator, (module, name) in _LAUNCHERS.items()
}


CASES = [
    ("resnet18", "fp32"),
    ("convnext_atto", "mixed"),
    ("efficientnet_lite0", "mixed"),
    ("torchvision:swin_v2_t", "mixed"),
    ("torchvision:mobilenet_v3_large", "bf16"),
]


class OnTheGpu(TorchDispatchMode):
    """Fails where an operation touches a tensor on the host, and runs our operators' launchers."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: dict[str, torch.dtype] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, results)):
            if isinstance(tensor, Tensor):
                assert tensor.device.type == "cuda", f"{func} touches the host's memory"
        name = func.name().removeprefix("d2ls_fast::")
        if name in LAUNCHERS:
            self.launched[name] = tree_leaves(args)[0].dtype
            with self:
                own = LAUNCHERS[name](*args, **(kwargs or {}))
            for ours, promised in zip(tree_leaves(own), tree_leaves(results), strict=True):
                assert (ours.shape, ours.dtype, ours.device) == (promised.shape, promised.dtype, promised.device), name
        return results


@contextmanager
def fake_gpu() -> Iterator[FakeTensorMode]:
    """Fake CUDA tensors, the back end triton, and no launches."""
    with (
        patch.dict("d2ls_fast.backends._AVAILABLE", {"triton": Support(True)}),
        patch("torch.cuda.get_device_capability", return_value=(9, 0)),
        patch("torch.cuda.is_bf16_supported", return_value=True),
        patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        patch("torch.cuda.device", lambda _: nullcontext()),
        patch("triton.runtime.jit.JITFunction.run", lambda *_, **__: None),
        FakeTensorMode() as mode,
    ):
        yield mode


def to_the_gpu(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Fake tensors in place of parameters and buffers."""
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    kind = dtype if tensor.is_floating_point() else tensor.dtype
                    store[name] = torch.empty(tensor.shape, dtype=kind, device="cuda")  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(("backbone", "precision"), CASES)
def test_predict_can_be_captured(backbone: str, precision: str) -> None:
    model = d2.create_model(backbone, 7)
    with fake_gpu(), torch.autocast("cuda", torch.bfloat16, precision == "mixed", cache_enabled=False):
        to_the_gpu(model, torch.bfloat16 if precision == "bf16" else torch.float32)
        images = torch.empty(2, 3, 80, 96, dtype=next(model.parameters()).dtype, device="cuda")
        with OnTheGpu() as watching:
            labels, confidence = model.predict(images, return_confidence=True)
    assert labels.shape == confidence.shape == (2, 80, 96) and labels.device.type == "cuda"
    # The last stage looks too, so that refine alone is not among them.
    assert set(watching.launched) == set(LAUNCHERS) - {"refine_triton"}
    assert watching.launched["attend_triton"] == (torch.float32 if precision == "fp32" else torch.bfloat16)


def test_the_watch_sees_what_is_forbidden() -> None:
    with fake_gpu(), OnTheGpu():
        on_gpu = torch.empty(3, device="cuda")
        with pytest.raises(DataDependentOutputException):
            on_gpu.sum().item()
        for forbidden in (lambda: on_gpu.cpu(), lambda: torch.tensor([1.0], device="cuda"), lambda: torch.zeros(1)):
            with pytest.raises(AssertionError, match="touches the host's memory"):
                forbidden()


def test_the_cuda_sources_neither_allocate_nor_wait() -> None:
    # cudaMemsetAsync becomes a node of the graph.
    calls = r"Malloc\w*|Free\w*|Memcpy\w*|Memset|HostAlloc|\w*Synchronize|StreamCreate\w*|EventQuery"
    forbidden = re.compile(rf"\bcuda({calls})\(")
    files = [path for path in CSRC.rglob("*") if path.suffix in (".cu", ".cuh", ".h") and "emulator" not in path.parts]
    assert len(files) > 10
    found = [f"{path.name}: {match[0]}" for path in files for match in forbidden.finditer(path.read_text())]
    assert not found
