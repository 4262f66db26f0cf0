"""The back end cuda where there is no GPU: what it says of itself, and that nothing chooses it."""

from __future__ import annotations

import importlib
from unittest.mock import patch

import pytest
import torch

from d2ls_fast import _extension, info
from d2ls_fast.backends import backends as list_backends
from d2ls_fast.backends import preferring, select
from d2ls_fast.backends.base import Call, Support
from d2ls_fast.backends.native import Cuda
from d2ls_fast.ops import _cuda

BF16 = torch.bfloat16


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (Call("attend", "cuda", BF16, 256, 0), ""),
        (Call("refine", "cuda", BF16, 16, 64), ""),
        (Call("refine_attend", "cuda", torch.float32, 256, 32), ""),
        (Call("attend", "cuda", BF16, 272, 0), "up to 256, got 272"),
        (Call("attend", "cuda", BF16, 20, 0), "multiples of 16"),
        (Call("refine", "cuda", BF16, 256, 65), "up to 64 entries"),
        (Call("refine", "cuda", torch.float32, 256, 33), "up to 32 entries"),
        (Call("dictionary_step", "cuda", torch.float32, 256, 64), ""),
        (Call("dictionary_step", "cuda", torch.float32, 256, 65), "up to 64 entries"),
        (Call("interact", "cuda", BF16, 256, 64), ""),
        (Call("interact_labels", "cuda", torch.float32, 256, 8), "takes bfloat16 and float16"),
        (Call("classify_labels", "cuda", BF16, 256, 1280), ""),
        (Call("classify", "cuda", BF16, 256, 1281), "up to 1280"),
        (Call("segmentation_loss", "cuda", torch.float32, 256, 400), ""),
        (Call("segmentation_loss", "cuda", BF16, 256, 401), "up to 400"),
        (Call("pixel_dictionary_nce", "cuda", torch.float32, 256, 96), ""),
        (Call("pixel_dictionary_nce", "cuda", BF16, 256, 97), "up to 96"),
        (Call("fuse_pyramid", "cuda", BF16, 256, 0), "no CUDA kernel for fuse_pyramid"),
        (Call("attend", "cpu", BF16, 256, 0), "tensors are on cpu"),
        (Call("attend", "cuda", torch.float64, 256, 0), "float64"),
    ],
)
def test_what_it_serves(call: Call, reason: str) -> None:
    support = Cuda().supports(call)
    assert support.ok == (not reason) and reason in support.reason


def test_nothing_chooses_it_before_it_has_run_on_a_gpu() -> None:
    """Even where it is available and Triton is not."""
    states = {"cuda": Support(True), "triton": Support(False, "not here")}
    with patch.dict("d2ls_fast.backends._AVAILABLE", states):
        assert select("attend", torch.empty(1, device="meta")) == "torch"
        on_gpu = torch.empty(0)
        with patch("d2ls_fast.backends.Call", lambda *call: Call(call[0], "cuda", BF16, 256, 0)):
            assert select("attend", on_gpu) == "torch"


def test_it_can_be_preferred_to_compare_them() -> None:
    states = {"cuda": Support(True), "triton": Support(True)}
    fake_gpu = patch("d2ls_fast.backends.Call", lambda *call: Call(call[0], "cuda", BF16, 256, 0))
    with patch.dict("d2ls_fast.backends._AVAILABLE", states), fake_gpu:
        with preferring("cuda", "cuda", "triton"):
            assert select("attend", torch.empty(0)) == "cuda"
            assert select("fuse_pyramid", torch.empty(0)) == "triton"
        assert select("attend", torch.empty(0)) == "triton"


def test_the_reason_is_told() -> None:
    facts = info.facts()
    if not _extension.CUDA_LOADED:
        assert "nvcc" in facts["CUDA part"] or "does not load" in facts["CUDA part"]
        assert list_backends()["cuda"] == _extension.WHY_NOT_CUDA
    else:
        assert "not yet run on a GPU" in facts["CUDA part"]
        if not torch.cuda.is_available():
            assert list_backends()["cuda"] == "the kernels are built, but PyTorch sees no GPU"


@pytest.mark.parametrize("capability", [(8, 6), (12, 0)])
def test_a_gpu_of_another_kind_is_named(capability: tuple[int, int]) -> None:
    with (
        patch.object(_extension, "CUDA_LOADED", True),
        patch("torch.cuda.is_available", return_value=True),
        patch("torch.cuda.get_device_capability", return_value=capability),
    ):
        ok, reason = Cuda().available()
    found = ".".join(map(str, capability))
    assert not ok
    assert reason == f"the kernels are for compute capability 8.0, 8.7, 9.0, 10.0, 10.3, this GPU has {found}"


def test_its_operators_have_the_schemas_of_the_others() -> None:
    steps = ("attend", "refine", "refine_attend", "dictionary_step", "interact", "interact_labels")
    for name in (*steps, "classify", "classify_labels", "segmentation_sums", "nce_sums"):
        operator, own = getattr(torch.ops.d2ls_fast, name), getattr(torch.ops.d2ls_fast, f"{name}_cuda")
        assert str(own.default._schema) == str(operator.default._schema).replace(name, f"{name}_cuda", 1)
    with pytest.raises(NotImplementedError, match="CPU"):
        torch.ops.d2ls_fast.attend_cuda(torch.zeros(1, 2, 16), torch.zeros(2, 16), torch.zeros(1, 2, 16))


@pytest.mark.parametrize(("vectors", "served"), [(400, "cuda"), (401, "others")])
def test_gradients_of_many_class_vectors_are_left_to_other_kernels(vectors: int, served: str) -> None:
    module = importlib.import_module("d2ls_fast.ops.classify")
    hyper = torch.empty(1, vectors, 1)
    with (
        patch.object(_cuda, "classify_backward", lambda *_: ("cuda",)),
        patch.object(module, "_GPU", (None, None, lambda *_: ("others",))),
    ):
        assert module._cuda_backward(hyper, hyper, hyper, hyper) == (served,)
