"""The published trees of both contests, written once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from published_trees import write_tree
from submission_files import Published

from d2ls_fast.inference.submissions import CONTESTS


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Published]:
    """``published("loveda")``: its tree, written once."""
    made: dict[str, Published] = {}

    def make(contest: str) -> Published:
        if contest not in made:
            root = write_tree(contest, tmp_path_factory.mktemp(contest))
            made[contest] = Published(contest, root, CONTESTS[contest].find_images(root))
        return made[contest]

    return make
