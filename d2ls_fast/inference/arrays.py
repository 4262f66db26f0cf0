"""Maps of images in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2ls_fast.errors import UserError
from d2ls_fast.inference.products.rows import MapRows
from d2ls_fast.inference.sources import ArraySource, Source, has_data


def map_arrays(
    image: NDArray[Any] | Tensor,
    bands: int,
    nodata: float | None,
    with_confidence: bool,
    rows_of: Callable[[Source], Iterable[MapRows]],
) -> Any:
    """Labels, and confidence if wanted, of an image ``[bands, h, w]`` or of several, from the rows of each map.

    Arrays for an array, tensors on the CPU for a tensor.

    Raises:
        UserError: the image is no image or images of so many bands.
    """
    images = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    if images.ndim not in (3, 4) or images.shape[-3] != bands or 0 in images.shape or images.dtype.kind not in "buif":
        raise UserError(
            f"image of shape {tuple(image.shape)} and type {image.dtype}: "
            f"the model takes real numbers [{bands}, height, width], or a batch of such images"
        )
    size = (*images.shape[:-3], *images.shape[-2:])
    labels = np.empty(size, dtype=np.uint8)
    confidence = np.empty(size if with_confidence else 0, dtype=np.float32)
    for place in np.ndindex(images.shape[:-3]):
        for rows in rows_of(ArraySource(images[place], has_data(images[place], [nodata] * bands))):
            part = (*place, slice(rows.start, rows.start + len(rows.labels)))
            labels[part] = rows.labels
            if rows.confidence is not None:
                confidence[part] = rows.confidence
    if isinstance(image, Tensor):
        labels_tensor, confidence_tensor = torch.from_numpy(labels), torch.from_numpy(confidence)
        return (labels_tensor, confidence_tensor) if with_confidence else labels_tensor
    return (labels, confidence) if with_confidence else labels
