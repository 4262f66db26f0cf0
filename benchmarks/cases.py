"""The computations that are timed, at four levels, and the baselines they are timed against.

Baselines come from the same modules as the product: the back end ``reference`` is the released model's own order of
operations, ``torch`` the folded algebra in PyTorch; each eager and under torch.compile.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2ls_fast.backends import backend as using
from d2ls_fast.benchmarks.harness import Case, Variant
from d2ls_fast.models.head import D2LSHead
from d2ls_fast.models.model import D2LS, create_model
from d2ls_fast.nn.cross_attention import CrossAttention
from d2ls_fast.nn.losses import D2LSLoss
from d2ls_fast.ops import attend

# Largest error against float64, relative to the largest value. Compiled and fused forms sum in other orders.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
_HEADS, _EMBED = 8, 256


@dataclass(frozen=True)
class Sizes:
    """What a bench run varies."""

    batch: int = 1
    size: int = 512
    num_classes: int = 7
    stages: int = 3
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    backbone: str = "convnext_tiny"

    @property
    def pixels(self) -> int:
        return (self.size // 4) ** 2

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"B={self.batch} {self.size}x{self.size} K={self.num_classes} L={self.stages} {dtype} {self.device}"


Compute = Callable[[], Sequence[Tensor]]


def _under(backend: str, compute: Compute) -> Compute:
    def run() -> Sequence[Tensor]:
        with using(backend):
            return compute()

    return run


def _standard_variants(compute: Compute) -> list[Variant]:
    """The five ways every module can be computed; the first is the baseline."""
    variants = [Variant("reference eager", _under("reference", compute))]
    variants.append(Variant("reference compiled", _under("reference", torch.compile(compute))))
    variants.append(Variant("folded eager", _under("torch", compute)))
    variants.append(Variant("folded compiled", _under("torch", torch.compile(compute))))
    variants.append(Variant("fused", _under("auto", compute)))
    return variants


def _tensor(generator: torch.Generator, sizes: Sizes, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator).to(sizes.device, sizes.dtype)


def _forward(module: nn.Module, call: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Compute:
    def compute() -> Sequence[Tensor]:
        with torch.no_grad():
            return call(module, *inputs)

    return compute


def _with_backward(module: nn.Module, call: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Compute:
    """Results, then the gradients of every input: the loss is the sum of products with fixed random tensors."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]

    def compute() -> Sequence[Tensor]:
        outputs = call(module, *leaves)
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(o.shape, generator=generator).to(o) for o in outputs]
        torch.autograd.backward(outputs, weights)
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        for leaf in leaves:
            leaf.grad = None
        module.zero_grad(set_to_none=True)
        return [*(o.detach() for o in outputs), *gradients]

    return compute


def _cases_for(
    name: str,
    sizes: Sizes,
    module: nn.Module,
    call: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    extra: Callable[[Callable[..., Compute]], list[Variant]] | None = None,
    forward_cost: tuple[int, int] = (0, 0),
    both_cost: tuple[int, int] = (0, 0),
) -> list[Case]:
    """A forward case and a forward + backward case; costs are (bytes moved, operations) of the fused form."""
    precise = copy.deepcopy(module).double()
    wide = [t.double() for t in inputs]
    cases = []
    for suffix, mode, cost in (("forward", _forward, forward_cost), ("forward + backward", _with_backward, both_cost)):
        variants = _standard_variants(mode(module, call, inputs))
        if extra is not None:
            variants[1:1] = extra(mode)
        truth = _under("reference", mode(precise, call, wide))
        cases.append(Case(f"{name} {suffix}", str(sizes), truth, variants, _TOLERANCE[sizes.dtype], *cost))
    return cases


class _Sdpa(CrossAttention):
    """The unfolded cross-attention with PyTorch's fused attention kernel on the projected tensors."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (self._heads(p(t)) for p, t in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value)))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class _BareProducts(nn.Module):
    """Only the two matrix products that attend cannot do without, in the library's kernels: a floor, not a result."""

    def forward(self, query: Tensor, pixels: Tensor) -> Tensor:
        return query @ pixels.transpose(1, 2) @ pixels


def operator_cases(sizes: Sizes) -> list[Case]:
    """attend inside the cross-attention it replaces: dictionary in, dictionary update out, projections included."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    module = CrossAttention(_EMBED, _HEADS).to(sizes.device, sizes.dtype)
    sdpa = _Sdpa(_EMBED, _HEADS).to(sizes.device, sizes.dtype)
    sdpa.load_state_dict(module.state_dict())
    n, k, c = sizes.pixels, sizes.num_classes, _EMBED
    j = _HEADS * k
    pixel_pe = _tensor(generator, sizes, n, c)
    inputs = [_tensor(generator, sizes, sizes.batch, k, c), _tensor(generator, sizes, sizes.batch, n, c)]
    rows = _tensor(generator, sizes, sizes.batch, j, c) * c**-0.5

    def call(layer: CrossAttention, query: Tensor, pixels: Tensor) -> Sequence[Tensor]:
        return [layer.to_dictionary(query, pixels, pixel_pe.to(pixels.dtype))]

    def bare(layer: nn.Module, query: Tensor, pixels: Tensor) -> Sequence[Tensor]:
        return [layer(query, pixels)]

    def extra(mode: Callable[..., Compute]) -> list[Variant]:
        return [
            Variant("reference with sdpa", _under("reference", mode(sdpa, call, inputs))),
            Variant("floor: two bare products", mode(_BareProducts(), bare, [rows, inputs[1]]), checked=False),
        ]

    product = 2 * sizes.batch * n * j * c
    element = inputs[1].element_size()
    image, table = sizes.batch * n * c * element, n * c * element
    cases = _cases_for(
        "attend",
        sizes,
        module,
        call,
        inputs,
        extra,
        forward_cost=(image + table, 2 * product),
        both_cost=(3 * image + 2 * table, 7 * product),
    )
    return [*cases, _bare_attend(sizes, inputs[1], pixel_pe, rows, product, image + table)]


def _bare_attend(sizes: Sizes, pixels: Tensor, pixel_pe: Tensor, rows: Tensor, product: int, traffic: int) -> Case:
    """The operator alone, without the folding around it, against the products alone."""

    def compute() -> Sequence[Tensor]:
        with torch.no_grad():
            return attend(pixels, pixel_pe, rows)

    def truth() -> Sequence[Tensor]:
        with using("reference"), torch.no_grad():
            return attend(pixels.double(), pixel_pe.double(), rows.double())

    floor = Variant("floor: two bare products", lambda: [rows @ pixels.transpose(1, 2) @ pixels], checked=False)
    # The definition of this operator is already folded: reference and torch are one.
    variants = [floor, *(v for v in _standard_variants(compute) if not v.name.startswith("reference"))]
    return Case("attend, operator only", str(sizes), truth, variants, _TOLERANCE[sizes.dtype], traffic, 2 * product)


def _features(generator: torch.Generator, sizes: Sizes, channels: Sequence[int]) -> list[Tensor]:
    return [
        _tensor(generator, sizes, sizes.batch, c, sizes.size // stride, sizes.size // stride)
        for c, stride in zip(channels, (4, 8, 16, 32), strict=True)
    ]


def head_cases(sizes: Sizes) -> list[Case]:
    """The interaction alone, the classifier alone, and the whole head from four feature maps to logits or labels."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    channels = [96, 192, 384, 768]
    head = D2LSHead(channels, sizes.num_classes, _EMBED, _HEADS, sizes.stages).to(sizes.device, sizes.dtype).eval()
    pixels = _tensor(generator, sizes, sizes.batch, sizes.pixels, _EMBED)
    dictionary = _tensor(generator, sizes, sizes.batch, sizes.num_classes, _EMBED)
    pixel_pe = head.positions(sizes.size // 4, sizes.size // 4).to(pixels.dtype)

    def interaction(module: nn.Module, pixels: Tensor, dictionary: Tensor) -> Sequence[Tensor]:
        return module(pixels, pixel_pe.to(pixels.dtype), dictionary)

    def classify(module: nn.Module, pixels: Tensor, dictionary: Tensor) -> Sequence[Tensor]:
        return [module(pixels, dictionary, (sizes.size // 4, sizes.size // 4))]

    def whole(module: nn.Module, *features: Tensor) -> Sequence[Tensor]:
        return [module(features).logits]

    image, logits = sizes.batch * sizes.pixels * _EMBED, sizes.batch * sizes.num_classes * 16 * sizes.pixels
    traffic, product = image * pixels.element_size() + 4 * logits, 2 * image * sizes.num_classes
    features = _features(generator, sizes, channels)
    return [
        *_cases_for("interaction", sizes, head.interaction, interaction, [pixels, dictionary]),
        *_cases_for(
            "classify to logits",
            sizes,
            head.classifier,
            classify,
            [pixels, dictionary],
            forward_cost=(traffic, product),
            both_cost=(2 * traffic + image * pixels.element_size(), 4 * product),
        ),
        *_cases_for("head to logits", sizes, head, whole, features),
        _head_to_labels(sizes, head, features),
    ]


def _head_to_labels(sizes: Sizes, head: D2LSHead, features: list[Tensor]) -> Case:
    """Feature maps to labels: the released way computes the logits and takes their arg-max; ours never has them.

    Labels jump where two classes tie, so what is compared is the exact logit of the class that was chosen.
    """
    with using("reference"), torch.no_grad():
        exact = copy.deepcopy(head).double()([f.double() for f in features]).logits

    def by_logits() -> Sequence[Tensor]:
        with torch.no_grad():
            return [head(features).logits.argmax(1)]

    def directly() -> Sequence[Tensor]:
        with torch.no_grad():
            return [head.predict(features, (sizes.size, sizes.size), return_confidence=False)[0]]

    variants = [v for v in _standard_variants(by_logits) if v.name != "fused"]
    variants.append(Variant("fused", _under("auto", directly)))
    tolerance = _TOLERANCE[sizes.dtype]
    return Case(
        "head to labels",
        str(sizes),
        lambda: [exact.amax(1)],
        variants,
        tolerance,
        judge=lambda labels: [exact.gather(1, labels[0].long().unsqueeze(1)).squeeze(1)],
    )


def model_cases(sizes: Sizes) -> list[Case]:
    """Images to labels, the backbone included."""
    model, images = _model(sizes)

    def predict(module: D2LS, images: Tensor) -> Sequence[Tensor]:
        # Labels jump where two classes tie, so the scores themselves are what is compared.
        return [module(images)]

    compute = _forward(model, predict, [images])
    precise = copy.deepcopy(model).double()
    truth = _under("reference", _forward(precise, predict, [images.double()]))
    tolerance = 5 * _TOLERANCE[sizes.dtype]  # the backbone's own rounding comes on top
    return [
        Case(f"model {sizes.backbone}, images to logits", str(sizes), truth, _standard_variants(compute), tolerance)
    ]


def train_cases(sizes: Sizes) -> list[Case]:
    """One training step without the optimizer: forward, loss, backward."""
    model, images = _model(sizes)
    generator = torch.Generator().manual_seed(2)
    target = torch.randint(0, sizes.num_classes, (sizes.batch, sizes.size, sizes.size), generator=generator)
    target = target.to(sizes.device)
    criterion = D2LSLoss()

    def step(model: D2LS, images: Tensor) -> Compute:
        def compute() -> Sequence[Tensor]:
            model.train()
            torch.manual_seed(3)
            total = criterion(model(images), target)[0]
            total.backward()
            model.zero_grad(set_to_none=True)
            return [total.detach()]

        return compute

    precise = copy.deepcopy(model).double()
    truth = _under("reference", step(precise, images.double()))
    compute = step(model, images)
    eager = [v for v in _standard_variants(compute) if "compiled" not in v.name]
    tolerance = 5 * _TOLERANCE[sizes.dtype]
    return [Case(f"training step {sizes.backbone}", str(sizes), truth, eager, tolerance)]


def _model(sizes: Sizes) -> tuple[D2LS, Tensor]:
    torch.manual_seed(0)
    model = create_model(sizes.backbone, sizes.num_classes, stages=sizes.stages)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(sizes.batch, 3, sizes.size, sizes.size, generator=generator)
    return model.to(sizes.device, sizes.dtype).eval(), images.to(sizes.device, sizes.dtype)


LEVELS: dict[str, Callable[[Sizes], list[Case]]] = {
    "operator": operator_cases,
    "head": head_cases,
    "model": model_cases,
    "train": train_cases,
}
