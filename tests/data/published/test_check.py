"""Checking each published data set: nothing is wrong with it as published, every fault of a spoilt one is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from published_trees import write_tree

from d2ls_fast.config import validate
from d2ls_fast.data import DataSettings, build_datasets
from d2ls_fast.data.check import check_dataset
from d2ls_fast.data.published import PUBLISHED
from d2ls_fast.data.raster import read_mask, write_label_raster
from d2ls_fast.data.splits import split_pairs


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_a_published_data_set_is_checked_whole(name: str, tmp_path: Path) -> None:
    root = write_tree(name, tmp_path)
    settings = validate(DataSettings, {"dataset": name, "root": str(root)}, origin="recipe.yaml").under("paper")
    sound, data = check_dataset(settings), build_datasets(settings)
    assert sound.faults == [] and sound.bands == data.bands and sound.classes == data.classes
    for split in ("train", "val", "test"):
        items = getattr(data, split)
        assert sound.splits[split].images == len(items.pairs)
        assert sound.splits[split].pixels == sum(pair.height * pair.width for pair in items.pairs)

    split_before = split_pairs(settings)
    first, second, third = *split_before.train[:2], split_before.val[-1]
    first.mask.unlink()
    values, _, _ = read_mask(second.mask)
    write_label_raster(second.mask, np.full(values.shape[:2], 77, np.uint8), [[1, 2, 3]] * 256)
    third.image.write_text("text")
    spoilt = check_dataset(settings)
    for part in (f"{first.image}: image without a mask", f"{second.mask}: ", f"{third.image}: not a readable"):
        assert len([fault for fault in spoilt.faults if part in fault]) == 1, (part, spoilt.faults)
