"""TensorFlow's "same" padding with fixed numbers, where images have sides that all strides divide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn


@contextmanager
def fixed_same_padding(model: nn.Module) -> Iterator[None]:
    """Inside the block timm's convolutions with "same" padding pad by numbers instead of formulas of the size.

    Exact where every stride divides its input, as with sides in multiples of 32: an input of ``n s`` pixels with
    kernel k (dilated) and stride s needs ``max((n - 1) s + k - n s, 0) = max(k - s, 0)``. Of free sizes the formulas,
    nested through all layers, are what keeps torch.export busy for many minutes.
    """
    convolutions = [module for module in model.modules() if isinstance(module, Conv2dSame)]
    for module in convolutions:
        module.forward = _Padded(module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in convolutions:
            del module.forward


class _Padded:
    """The forward of one convolution."""

    def __init__(self, module: Conv2dSame) -> None:
        self.module = module
        pads = []
        for kernel, stride, dilation in zip(module.kernel_size, module.stride, module.dilation, strict=True):
            total = max(dilation * (kernel - 1) + 1 - stride, 0)
            pads.append((total // 2, total - total // 2))
        self.pads = (*pads[1], *pads[0])

    def __call__(self, images: Tensor) -> Tensor:
        module = self.module
        padded = F.pad(images, self.pads) if any(self.pads) else images
        return F.conv2d(padded, module.weight, module.bias, module.stride, 0, module.dilation, module.groups)
