"""The two back ends in plain PyTorch: they run everywhere and need nothing compiled."""

from __future__ import annotations

from d2ls_fast.backends.base import Call, Support


class Reference:
    """The definition: what the released model computes, projection by projection. Defines what is right."""

    name = "reference"

    def available(self) -> Support:
        return Support(True)

    def supports(self, call: Call) -> Support:
        return Support(True)


class Torch:
    """The folded algebra in PyTorch operations; torch.compile and autograd see through it. Also serves float64."""

    name = "torch"

    def available(self) -> Support:
        return Support(True)

    def supports(self, call: Call) -> Support:
        return Support(True)
