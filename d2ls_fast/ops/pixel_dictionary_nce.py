"""pixel_dictionary_nce: InfoNCE between pixel features and the dictionary entries of their classes."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from d2ls_fast.backends import select
from d2ls_fast.ops._library import operator_of
from d2ls_fast.ops._nce import nce_sums_definition

Direction = Literal["pixels", "dictionary", "both"]


class NceSums(NamedTuple):
    """All that the loss needs to know of a batch, at least float32; sums of the parts of a batch add up to its own.

    Pixel direction: loss and count of labelled pixels per class, ``[K]``. Dictionary direction: loss and number of the
    entries present in an image, scalars. The losses of a direction that is not asked for are zero.
    """

    pixel_loss: Tensor
    pixel_count: Tensor
    entry_loss: Tensor
    entry_count: Tensor


def pixel_dictionary_nce(
    pixels: Tensor,
    dictionary: Tensor,
    target: Tensor,
    temperature: float = 0.1,
    ignore_index: int = 255,
    balanced: bool = False,
    direction: Direction = "pixels",
    prototypes: int = 1,
) -> Tensor:
    r"""Every pixel feature is close to the dictionary entry of its class and far from the others.

    With :math:`s_{nk} = \cos(x_n, D_k) / \tau`, y the label and all means over labelled pixels:

    - ``pixels``: :math:`\mathrm{mean}_n [\mathrm{lse}_k s_{nk} - s_{n y_n}]`, negatives are the other entries;
    - ``dictionary``: mean over the classes present in an image of
      :math:`\mathrm{lse}_n s_{nk} - \mathrm{mean}_{n: y_n = k} s_{nk}`, negatives are the image's other pixels;
    - ``both``: the mean of the two.

    With P entries a class, the score of a class is the log-sum-exp over its P entries. A vector shorter than 1e-12 is
    divided by 1e-12, as :func:`torch.nn.functional.normalize` does.

    Args:
        pixels: x, ``[B, N, C]``; float32, bfloat16, float16 (kernels) or float64 (PyTorch).
        dictionary: D, ``[B, K * P, C]``, class-major rows ``k * P + p``; any float dtype.
        target: labels ``[B, N]``, int64.
        temperature: tau, positive and finite.
        ignore_index: label of pixels that take no part.
        balanced: in the pixel direction, average within each class first, so that every class present counts the same.
        direction: ``pixels``, ``dictionary`` or ``both``.
        prototypes: P, dictionary entries per class.

    Returns:
        scalar, float32 (float64 for float64 pixels); zero, with zero gradients, where no pixel is labelled. Norms,
        scores and sums are float32 whatever the pixels' dtype is.

    Raises:
        ValueError: shapes, dtypes, devices or values do not fit, or target holds a label that is neither ignore_index
            nor in [0, K); the message names the argument. Inside torch.compile and on GPUs a wrong label is a
            RuntimeError or a device-side assertion instead.
        BackendError: a forced back end cannot serve the call.

    Differentiable once in pixels and dictionary; the backward recomputes the scores tile by tile, so nothing of size
    ``N x K`` is stored. Bitwise repeatable.

    Source: the contrastive term as the paper summarises it (arXiv 2503.06683); InfoNCE, van den Oord et al. 2018.
    """
    sums = nce_sums(pixels, dictionary, target, temperature, ignore_index, direction, prototypes)
    return nce_mean(sums, balanced, direction)


def nce_sums(
    pixels: Tensor,
    dictionary: Tensor,
    target: Tensor,
    temperature: float = 0.1,
    ignore_index: int = 255,
    direction: Direction = "pixels",
    prototypes: int = 1,
) -> NceSums:
    """The sums of a batch from which :func:`nce_mean` makes the loss; those of several batches may be added.

    Arguments, errors and derivatives are those of :func:`pixel_dictionary_nce`.
    """
    check_options(temperature, direction, prototypes)
    _check_tensors(pixels, dictionary, target, prototypes)
    rows, columns = direction != "dictionary", direction != "pixels"
    with torch.autocast(pixels.device.type, enabled=False):
        wide = torch.promote_types(pixels.dtype, torch.float32)
        entries = F.normalize(dictionary.to(wide), dim=-1) / temperature
        arguments = (pixels, entries, target, prototypes, ignore_index, rows, columns)
        name = select("pixel_dictionary_nce", pixels, entries=dictionary.shape[1])
        if name in ("reference", "torch"):
            loss, positive, log_sum_exp, count = nce_sums_definition(*arguments)
        else:
            loss, positive, log_sum_exp, count = operator_of("nce_sums", name)(*arguments)
        labelled, strays = count[:, :-1], count[:, -1]
        _check_labels(strays, labelled.shape[1], ignore_index)
        present = labelled > 0
        entry_loss = (log_sum_exp - positive / labelled.clamp_min(1)).where(present, 0.0).sum()
        return NceSums(loss.sum(0), labelled.sum(0).to(wide), entry_loss, present.sum().to(wide))


def nce_mean(sums: NceSums, balanced: bool, direction: Direction) -> Tensor:
    """The loss of a batch, or of several whose sums were added."""
    pixel_loss, pixel_count, entry_loss, entry_count = sums
    if balanced:
        present = (pixel_count > 0).sum()
        of_pixels = (pixel_loss / pixel_count.clamp_min(1)).sum() / present.clamp_min(1)
    else:
        of_pixels = pixel_loss.sum() / pixel_count.sum().clamp_min(1)
    of_entries = entry_loss / entry_count.clamp_min(1)
    if direction == "both":
        return 0.5 * (of_pixels + of_entries)
    return of_pixels if direction == "pixels" else of_entries


def check_options(temperature: float, direction: str, prototypes: int) -> None:
    """Raise ``ValueError`` unless the options are of the kind :func:`pixel_dictionary_nce` takes."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"pixel_dictionary_nce: temperature must be positive and finite, got {temperature}")
    if direction not in get_args(Direction):
        names = ", ".join(get_args(Direction))
        raise ValueError(f"pixel_dictionary_nce: direction must be one of {names}, got {direction!r}")
    if prototypes < 1:
        raise ValueError(f"pixel_dictionary_nce: prototypes must be at least 1, got {prototypes}")


def _check_tensors(pixels: Tensor, dictionary: Tensor, target: Tensor, prototypes: int) -> None:
    operator = "pixel_dictionary_nce"
    if pixels.dim() != 3 or 0 in pixels.shape:
        raise ValueError(f"{operator}: pixels must be [B, N, C], not empty, got {tuple(pixels.shape)}")
    b, n, c = pixels.shape
    for name, tensor in (("pixels", pixels), ("dictionary", dictionary)):
        if not tensor.dtype.is_floating_point:
            raise ValueError(f"{operator}: {name} must be a floating-point tensor, got {tensor.dtype}")
    if dictionary.dim() != 3 or dictionary.shape[0] != b or dictionary.shape[1] == 0 or dictionary.shape[2] != c:
        raise ValueError(f"{operator}: dictionary must be [{b}, K * P, {c}], got {tuple(dictionary.shape)}")
    if dictionary.shape[1] % prototypes:
        raise ValueError(
            f"{operator}: prototypes must divide the {dictionary.shape[1]} rows of dictionary, got {prototypes}"
        )
    if target.dtype != torch.int64:
        raise ValueError(f"{operator}: target must be int64, got {target.dtype}")
    if target.shape != (b, n):
        raise ValueError(f"{operator}: target must label the pixels, [{b}, {n}], got {tuple(target.shape)}")
    for name, tensor in (("dictionary", dictionary), ("target", target)):
        if tensor.device != pixels.device:
            raise ValueError(
                f"{operator}: {name} must be on the device of pixels, {pixels.device}, got {tensor.device}"
            )


def _check_labels(strays: Tensor, classes: int, ignore_index: int) -> None:
    if torch.compiler.is_compiling() or strays.device.type != "cpu":
        # No wait for the device, no graph break. The text is a constant: sizes may be symbols here.
        torch._assert_async((strays == 0).all(), "target must hold classes from 0 to K - 1 or ignore_index")
    elif strays.any():
        raise ValueError(
            f"pixel_dictionary_nce: target must hold classes from 0 to {classes - 1} or ignore_index {ignore_index},"
            f" {int(strays.sum())} labels are neither"
        )
