"""What an exported file says about itself: the card of its model, and what it can be given."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from d2ls_fast.errors import UserError
from d2ls_fast.models.base import STRIDE
from d2ls_fast.models.checkpoint import ModelCard, check_card

Format = Literal["exported-program", "aoti", "onnx"]
Operators = Literal["plain", "fused"]
Precision = Literal["fp32", "bf16"]

SUFFIXES: dict[Format, str] = {"exported-program": ".pt2", "aoti": ".pt2", "onnx": ".onnx"}
KEY = "d2ls_fast"
"""Where each format's own metadata hold the manifest, as JSON."""
SMALLEST = 2 * STRIDE
"""Side of the smallest image of a file of any size: at one pixel the deepest map has another graph."""


@dataclass(frozen=True)
class Manifest:
    """What one must know to run an exported file, whose graph maps ``images`` to ``logits``.

    images: float32 ``[B, bands, H, W]``, ``(raw - mean) / std`` with the card's numbers, sides multiples of 32.
    logits: float32 ``[B, K, H, W]``.

    Attributes:
        card: of the checkpoint.
        format: ``exported-program``, ``aoti`` or ``onnx``.
        operators: ``plain``: only PyTorch's own (ONNX's own), so the file runs without this package; ``fused``: with
            this package's, which must be imported.
        precision: of the products, ``fp32`` or ``bf16``.
        device: ``cpu`` or ``cuda``, where it runs.
        shape: (B, H, W), if only that; None for any batch and sides from :data:`SMALLEST` on.
        opset: of an ONNX file.
        torch: the version that wrote it.
    """

    card: ModelCard
    format: Format
    operators: Operators
    precision: Precision
    device: str
    shape: tuple[int, int, int] | None
    opset: int | None
    torch: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def sizes(self) -> str:
        """The batches and sizes that the file takes, in words."""
        if self.shape is None:
            return f"any batch, sides from {SMALLEST}"
        batch, height, width = self.shape
        return f"batch {batch}, {height} x {width}"


_MANIFEST = TypeAdapter(Manifest)


def read_manifest(text: str | bytes | None, origin: str) -> Manifest:
    """The manifest in a file's metadata.

    Raises:
        UserError: there is none, or it is damaged; ``origin`` is named.
    """
    if text is None:
        raise UserError(f"{origin}: not exported by this package (no card inside); use d2ls-fast export")
    try:
        manifest = _MANIFEST.validate_json(text)
    except ValidationError:
        raise UserError(f"{origin}: its card cannot be read; the file is damaged or of another version") from None
    check_card(manifest.card, origin)
    return manifest
