"""Every operator as a call with random tensors, its results and gradients: for all back ends and devices alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from d2ls_fast import ops
from d2ls_fast.backends import _REGISTRY, Call, backend, backends
from d2ls_fast.ops.dictionary_step import Entries, Look, Update

EPS = 1e-5
DEVICES = {"cpu": "cpu", "triton": "cuda", "cuda": "cuda"}
# The back ends made of kernels that work here on tensors; Triton's interpreter is tested elsewhere.
KERNELS = [n for n in DEVICES if backends()[n] == "available" and (n == "cpu" or torch.cuda.is_available())]


class Size(NamedTuple):
    """Images, the stride-4 grid, heads H, entries K, channels C."""

    batch: int
    grid: tuple[int, int]
    heads: int
    entries: int
    channels: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.grid[0]}x{self.grid[1]} H{self.heads} K{self.entries} C{self.channels}"

    @property
    def pixels(self) -> int:
        return self.grid[0] * self.grid[1]


SIZES = [Size(1, (1, 1), 1, 1, 64), Size(3, (1, 113), 2, 5, 96), Size(1, (7, 29), 8, 7, 256)]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Operator:
    """A call. ``typed`` tensors have the dtype that is tested, the others that of its sums."""

    make: Callable[[Size, Callable[..., Tensor]], Tensors]
    call: Callable[[Tensors, Size], Sequence[Tensor]]
    typed: tuple[str, ...]


def _pixels(size: Size, normal: Callable[..., Tensor]) -> Tensors:
    b, n, c = size.batch, size.pixels, size.channels
    return {"pixels": normal(b, n, c), "pixel_pe": normal(n, c)}


def _look(size: Size, normal: Callable[..., Tensor]) -> Tensors:
    rows = normal(size.batch, size.heads * size.entries, size.channels) / size.channels**0.5
    return _pixels(size, normal) | {"query": rows}


def _update(size: Size, normal: Callable[..., Tensor]) -> Tensors:
    b, j, c = size.batch, size.heads * size.entries, size.channels
    rows = {"key": normal(b, j, c) / c**0.5, "key_bias": normal(b, j), "value": normal(b, j, c)}
    return _pixels(size, normal) | rows | {n: normal(c) for n in ("out_bias", "norm_weight", "norm_bias")}


def _both(size: Size, normal: Callable[..., Tensor]) -> Tensors:
    return _update(size, normal) | {"query": _look(size, normal)["query"]}


def _scores(size: Size, normal: Callable[..., Tensor]) -> Tensors:
    c = size.channels
    vectors = {
        "norm_weight": normal(c // 4),
        "norm_bias": normal(c // 4),
        "hyper": normal(size.batch, size.entries, c // 16),
    }
    return {"pixels": normal(size.batch, size.pixels, c)} | vectors


def _dictionary(size: Size, normal: Callable[..., Tensor]) -> Tensors:
    b, k, c, i = size.batch, size.entries, size.channels, size.channels // 2
    tensors = {"dictionary": normal(b, k, c), "position": normal(b, k, c), "context": normal(b, size.heads * k, c)}
    for part, kind in (("update", Update), ("entries", Entries), ("look", Look)):
        for field in kind._fields:
            outward = field.startswith(("out", "norm"))
            if field == "out_weight":
                tensors[f"{part}.{field}"] = normal(c, i) / i**0.5
            elif field.endswith("weight") and not outward:
                tensors[f"{part}.{field}"] = normal(i, c) / c**0.5
            else:
                tensors[f"{part}.{field}"] = normal(c if outward else i)
    return tensors


def _step(tensors: Tensors, size: Size) -> Sequence[Tensor]:
    def part(name: str) -> list[Tensor]:
        return [t for key, t in tensors.items() if key.startswith(name + ".")]

    dtype = torch.promote_types(tensors["dictionary"].dtype, torch.float32)
    parts = {"update": Update(*part("update")), "entries": Entries(*part("entries")), "look": Look(*part("look"))}
    given = (tensors["dictionary"], tensors["position"], size.heads, dtype)
    return ops.dictionary_step(*given, context=tensors["context"], **parts)  # type: ignore[arg-type]


def _maps(size: Size, normal: Callable[..., Tensor]) -> Tensors:
    tensors = {}
    for level, channels in enumerate((24, 48)):
        h, w = (max(1, -(-side // 2**level)) for side in size.grid)
        tensors[f"map {level}"] = normal(size.batch, channels, h, w)
        tensors[f"weight {level}"] = normal(size.channels, channels) / channels**0.5
        tensors[f"bias {level}"] = normal(size.channels)
    return tensors


def _fuse(tensors: Tensors, size: Size) -> Sequence[Tensor]:
    return [ops.fuse_pyramid(*([tensors[f"{kind} {level}"] for level in (0, 1)] for kind in ("map", "weight", "bias")))]


def target(tensors: Tensors, size: Size, scale: int) -> Tensor:
    """Labels of the grid ``scale`` times as fine, some of them ignored."""
    shape = (size.batch, scale * size.grid[0], scale * size.grid[1])
    labels = torch.randint(0, size.entries, shape, generator=torch.Generator().manual_seed(3))
    labels[..., ::7] = 255
    return labels.to(tensors["pixels"].device)


def _loss(tensors: Tensors, size: Size) -> Sequence[Tensor]:
    return ops.segmentation_loss(*tensors.values(), target(tensors, size, 4), size.grid)


def _nce(tensors: Tensors, size: Size) -> Sequence[Tensor]:
    labels = target(tensors, size, 1).flatten(1)
    return [ops.pixel_dictionary_nce(*tensors.values(), labels, direction="both")]


OPERATORS = {
    "attend": Operator(_look, lambda t, size: ops.attend(*t.values()), ("pixels", "pixel_pe", "query")),
    "refine": Operator(
        _update,
        lambda t, size: [ops.refine(*t.values(), size.heads, EPS)],
        ("pixels", "pixel_pe", "key", "value"),
    ),
    "refine_attend": Operator(
        _both,
        lambda t, size: ops.refine_attend(*t.values(), size.heads, EPS),
        ("pixels", "pixel_pe", "key", "value", "query"),
    ),
    "dictionary_step": Operator(_dictionary, _step, ()),
    "fuse_pyramid": Operator(_maps, _fuse, ("map 0", "map 1", "weight 0", "weight 1")),
    "classify": Operator(_scores, lambda t, size: [ops.classify(*t.values(), size.grid)], ("pixels",)),
    "segmentation_loss": Operator(_scores, _loss, ("pixels",)),
    "ratio_contrast": Operator(
        lambda size, normal: {"dictionary": normal(size.batch, size.entries, size.channels)},
        lambda t, size: [ops.ratio_contrast(t["dictionary"])],
        (),
    ),
    "pixel_dictionary_nce": Operator(
        lambda size, normal: {
            "pixels": normal(size.batch, size.pixels, size.channels),
            "dictionary": normal(size.batch, size.entries, size.channels),
        },
        _nce,
        ("pixels",),
    ),
}


def served(name: str, operator: str, size: Size, dtype: torch.dtype) -> bool:
    """Whether the back end takes such a call."""
    entries = 0 if operator in ("attend", "dictionary_step") else size.entries
    return _REGISTRY[name].supports(Call(operator, DEVICES[name], dtype, size.channels, entries)).ok


def tensors_of(name: str, size: Size, dtype: torch.dtype, device: str) -> Tensors:
    """The same random numbers on every device, rounded to ``dtype`` where the operator takes it."""
    generator = torch.Generator().manual_seed(1000 * size.pixels + size.entries)
    made = OPERATORS[name].make(size, lambda *shape: torch.randn(shape, generator=generator))
    return {key: t.to(device, dtype if key in OPERATORS[name].typed else torch.float32) for key, t in made.items()}


def results_of(name: str, tensors: Tensors, size: Size, under: str, double: bool = False) -> dict[str, Tensor]:
    """Results and gradients by name, under the back end ``under``; ``double`` computes everything in float64."""
    leaves = {key: (t.double() if double else t.detach().clone()).requires_grad_() for key, t in tensors.items()}
    with backend(under):
        results = [t for t in OPERATORS[name].call(leaves, size) if t.numel()]
    generator = torch.Generator().manual_seed(7)
    torch.autograd.backward(results, [torch.randn(t.shape, generator=generator).to(t) for t in results])
    gradients = {f"grad {key}": torch.zeros_like(t) if t.grad is None else t.grad for key, t in leaves.items()}
    return {f"result {number}": t.detach() for number, t in enumerate(results)} | gradients
