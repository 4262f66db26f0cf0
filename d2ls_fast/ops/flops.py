"""Arithmetic of the operators for ``torch.utils.flop_counter``, which cannot look into them and would count nothing."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

_LOGITS_OF_LOSS = (0, 1, 2, 3, 8, 9, 10)  # of the arguments of segmentation_sums: those of classify

# Operator -> module and name of the plain form that makes the same products, and which arguments that takes.
_PLAIN_FORMS: dict[str, tuple[str, str, tuple[int, ...] | None]] = {
    "attend": ("attend", "attend_definition", None),
    "attend_backward": ("attend", "_plain_backward", None),
    "attend_projected": ("attend_projected", "attend_projected_definition", None),
    "attend_projected_backward": ("attend_projected", "plain_backward", None),
    "classify": ("_classify", "classify_definition", None),
    "classify_labels": ("_classify", "classify_definition", (0, 1, 2, 3, 4, 5, 6)),
    "classify_backward": ("_classify", "plain_backward", None),
    "dictionary_step": ("_folding", "dictionary_step_definition", None),
    "dictionary_step_backward": ("_folding", "plain_backward", None),
    "fuse_pyramid": ("fuse_pyramid", "fuse_pyramid_definition", None),
    "fuse_pyramid_backward": ("fuse_pyramid", "plain_backward", None),
    "interact": ("interact", "interact_definition", None),
    "interact_labels": ("interact_labels", "interact_labels_definition", None),
    "nce_sums": ("_nce", "nce_sums_definition", None),
    "nce_sums_backward": ("_nce", "nce_sums_backward", None),
    "refine": ("refine", "refine_definition", None),
    "refine_attend": ("refine_attend", "refine_attend_definition", None),
    "refine_attend_backward": ("_refine", "plain_backward", None),
    "refine_projected": ("_refine_projected", "refine_projected_definition", None),
    "refine_projected_backward": ("_refine_projected", "plain_backward", None),
    "segmentation_sums": ("_classify", "classify_definition", _LOGITS_OF_LOSS),
    "segmentation_sums_backward": ("_segmentation", "plain_backward", None),
}


def count_flops(run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of ``run``, a multiply-add counted as two.

    The operators of this package count as their plain PyTorch forms do, which make the same products; so do their
    backward operators, repeated products included.
    """
    register()
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def register() -> None:
    """Make the operators known to ``torch.utils.flop_counter`` in this process; a second call changes nothing."""
    aten = torch.ops.aten
    # Older torch counts attention on GPUs only.
    attention = flop_registry[aten._scaled_dot_product_flash_attention]
    flop_registry.setdefault(aten._scaled_dot_product_flash_attention_for_cpu, attention)
    for operator, (module, form, positions) in _PLAIN_FORMS.items():
        plain = getattr(import_module(f"d2ls_fast.ops.{module}"), form)
        stem, backward, _ = operator.partition("_backward")
        for name in (operator, f"{stem}_triton{backward}", f"{stem}_cuda{backward}"):
            packet = getattr(torch.ops.d2ls_fast, name, None)  # not every operator has kernels of every kind
            if packet is not None and packet not in flop_registry:
                register_flop_formula(packet, get_raw=True)(_formula(plain, positions))


def _formula(plain: Callable[..., Any], positions: tuple[int, ...] | None) -> Callable[..., int]:
    """What the counter finds in the plain form, run on tensors that have a shape and no contents."""

    def formula(*arguments: Any, out_val: Any = None, **named: Any) -> int:
        chosen = arguments if positions is None else [arguments[i] for i in positions]
        with FakeTensorMode() as fakes, FlopCounterMode(display=False) as counter:
            plain(*tree_map_only(Tensor, fakes.from_tensor, chosen))
        return counter.get_total_flops()

    return formula
