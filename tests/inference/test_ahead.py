"""Results come in order, not too many ahead, and an error comes where its result would."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from d2ls_fast.inference.ahead import ahead


def test_results_come_in_order_whichever_is_ready_first() -> None:
    def slow(number: int) -> int:
        time.sleep(0.01 * (5 - number % 5))
        return number

    assert list(ahead([partial(slow, n) for n in range(20)], threads=4, depth=8)) == list(range(20))


def test_no_more_than_the_depth_is_made_ahead() -> None:
    begun: list[int] = []
    results = ahead([partial(begun.append, n) for n in range(100)], threads=2, depth=3)
    for taken in range(1, 20):
        next(results)
        assert len(begun) <= taken + 3
    results.close()
    assert len(begun) < 30


def test_an_error_is_raised_in_its_place_and_ends_the_rest() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise ValueError("the fourth")
        return number

    results = ahead([partial(work, n) for n in range(100)], threads=1, depth=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the fourth"):
        next(results)
    assert len(begun) < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("d2ls-fast")]
