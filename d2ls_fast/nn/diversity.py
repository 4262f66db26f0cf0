"""The term that keeps a class's prototypes from becoming one."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def prototype_diversity(dictionary: Tensor, prototypes: int) -> Tensor:
    r"""How alike the prototypes of a class are.

    .. math:: \frac{1}{B K P (P - 1)} \sum_{b, k} \sum_{p \ne q} \cos^2(d_{bkp}, d_{bkq})

    0 where the prototypes of every class are orthogonal, 1 where they are parallel.

    Args:
        dictionary: ``[B, K * P, C]``, class-major rows, floating.
        prototypes: P >= 2.

    Returns:
        scalar, at least float32.

    Raises:
        ValueError: fewer than two prototypes, or their number does not divide the rows.
    """
    rows = dictionary.shape[1]
    if prototypes < 2 or rows % prototypes:
        raise ValueError(f"diversity needs two prototypes or more that divide the {rows} rows, got {prototypes}")
    directions = F.normalize(dictionary.float() if dictionary.dtype.itemsize < 4 else dictionary, dim=-1)
    classes = directions.unflatten(1, (-1, prototypes))
    alike = classes @ classes.mT
    # The diagonal is 1 but for rounding; without it the sum is over different prototypes.
    pairs = alike.square().sum((-1, -2)) - alike.diagonal(dim1=-2, dim2=-1).square().sum(-1)
    mean = pairs / (prototypes * (prototypes - 1))
    return mean.mean()
