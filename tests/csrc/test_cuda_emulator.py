"""The emulator itself: a kernel that lacks a wait, a fence or a barrier must not pass in it."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from cuda_emulator import CUDA, Device, attend, compile_library, loaded

FORGOTTEN = {
    "the barrier between tiles": ("attend.cuh", "      block_barrier();", ""),
    "the fence before wgmma": ("products_warpgroup.cuh", "fence() { fence_for_products(); }", "fence() {}"),
    "the wait for copies": ("attend.cuh", "copy_wait<Plan::stages - 2>();", "copy_wait<Plan::stages - 1>();"),
    "the order of copies and products": (
        "attend.cuh",
        "      add_encoding(",
        "fetch(tile + Plan::stages - 1); add_encoding(",
    ),
    "the wait for wgmma": ("products_warpgroup.cuh", "products_wait<0>();", ""),
}


@pytest.fixture(scope="module")
def tensors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 300, 64), (300, 64), (1, 20, 64))
    return [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]


@pytest.fixture(scope="module")
def expected(tensors: list[torch.Tensor]) -> dict[int, torch.Tensor]:
    return {major: attend(tensors[0], tensors[1], tensors[2], Device(major))[0] for major in (8, 9)}


@pytest.mark.parametrize("what", FORGOTTEN)
def test_what_is_forgotten_is_noticed(
    what: str, tensors: list[torch.Tensor], expected: dict[int, torch.Tensor], tmp_path: Path
) -> None:
    name, old, new = FORGOTTEN[what]
    shutil.copytree(CUDA, tmp_path / "cuda")
    source = tmp_path / "cuda" / name
    text = source.read_text(encoding="utf-8")
    assert old in text
    source.write_text(text.replace(old, new), encoding="utf-8")
    only = tmp_path / "cuda" / "attend.cu"
    only.write_text(only.read_text(encoding="utf-8").replace("dispatch(", "for_bf16("), encoding="utf-8")
    products = tmp_path / "cuda" / "products.cuh"
    products.write_text(products.read_text(encoding="utf-8") + ONE_KIND, encoding="utf-8")
    compile_library([only, tmp_path / "cuda" / "emulator" / "attend.cc"], tmp_path / "broken.so", tmp_path, "-O0")
    broken = loaded(tmp_path / "broken.so")
    noticed = False
    for major, early, descending in itertools.product((8, 9), (False, True), (False, True)):
        device = Device(major, 1, early, descending)
        try:
            context, _ = attend(tensors[0], tensors[1], tensors[2], device, emulator=broken)
            noticed = noticed or not torch.equal(context, expected[major])
        except RuntimeError:
            noticed = True
    assert noticed


# Two kernels instead of all, to compile in a second.
ONE_KIND = """
namespace d2ls::cuda {
template <class F>
Error for_bf16(Type, int major, int, const F& f) {
  const std::integral_constant<int, 64> channels;
  return major == 8 ? f(Half<Bf16>(), Ampere(), channels) : f(Half<Bf16>(), Hopper(), channels);
}
}
"""
