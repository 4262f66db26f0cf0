"""The neck: composed products against concatenation."""

from __future__ import annotations

import pytest
import torch

from d2ls_fast.backends import backend
from d2ls_fast.nn.pyramid import PyramidNeck


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", [[(16, 24), (8, 12), (4, 6), (2, 3)], [(13, 9), (7, 5), (4, 3)], [(5, 5)]])
def test_composed_equals_concatenation(sizes: list[tuple[int, int]], bias: bool) -> None:
    torch.manual_seed(0)
    channels = [3, 5, 7, 11][: len(sizes)]
    neck = PyramidNeck(channels, 8, bias=bias).double()
    features = [
        torch.randn(2, c, *s, dtype=torch.float64, requires_grad=True) for c, s in zip(channels, sizes, strict=True)
    ]
    weight = torch.randn(2, sizes[0][0] * sizes[0][1], 8, dtype=torch.float64)
    results = []
    for name in ("reference", "torch"):
        with backend(name):
            fused = neck(features)
        results.append((fused, *torch.autograd.grad((fused * weight).sum(), [*features, *neck.parameters()])))
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    assert results[1][0].is_contiguous()


def test_order_of_levels_and_layout() -> None:
    neck = PyramidNeck([2, 3], 4)
    features = [torch.randn(1, 2, 4, 4), torch.randn(1, 3, 2, 2)]
    with torch.no_grad():
        neck.fuse.weight[:, :4] = 0.0  # the first block of columns is the coarsest level's
        fused = neck(features)
        expected = neck.fuse.weight[:, 4:] @ neck.projections[0](features[0][0, :, 1, 2])
    torch.testing.assert_close(fused[0, 1 * 4 + 2], expected)


def test_wrong_maps_are_refused() -> None:
    neck = PyramidNeck([2, 3], 4)
    with pytest.raises(ValueError, match="expected 2 feature maps"):
        neck([torch.randn(1, 2, 4, 4)])
    with pytest.raises(ValueError, match=r"feature map 1 must be \[B, 3, h, w\]"):
        neck([torch.randn(1, 2, 4, 4), torch.randn(1, 2, 2, 2)])
    with pytest.raises(ValueError, match="in_channels"):
        PyramidNeck([], 4)
