"""The published data sets by name, one file each, read as their publishers give them out.

A published data set is a source of (train, val, test) pairs, a rule for its labels and defaults for the ``data:``
group. Layouts, splits and mask values are those of the publishers; the classes' colours are in
:mod:`d2ls_fast.data.palettes`.
"""

from __future__ import annotations

from d2ls_fast.data.published.base import PublishedDataset
from d2ls_fast.data.published.cloud import Cloud
from d2ls_fast.data.published.grass import Grass
from d2ls_fast.data.published.isaid import ISAID
from d2ls_fast.data.published.loveda import LoveDA
from d2ls_fast.data.published.potsdam import Potsdam
from d2ls_fast.data.published.uavid import UAVid
from d2ls_fast.data.published.vaihingen import Vaihingen

__all__ = ["PUBLISHED", "PublishedDataset"]

PUBLISHED: dict[str, PublishedDataset] = {
    dataset.name: dataset for dataset in (LoveDA(), UAVid(), Potsdam(), Vaihingen(), ISAID(), Cloud(), Grass())
}
