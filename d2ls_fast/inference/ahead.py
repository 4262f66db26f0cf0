"""Work on threads, ahead of the one that takes the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def ahead(tasks: Iterable[Callable[[], Result]], threads: int, depth: int) -> Generator[Result, None, None]:
    """The results of ``tasks`` in their order, at most ``depth`` of them made before they are asked for.

    An exception of a task is raised where its result would come; tasks that were not begun are then left.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="d2ls-fast") as pool:
        try:
            for task in tasks:
                waiting.append(pool.submit(task))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
