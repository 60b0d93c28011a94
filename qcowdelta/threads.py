"""Work spread over threads, its results in the order of its arguments."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def in_order(
    pool: Executor,
    function: Callable[[Argument], Result],
    arguments: Iterable[Argument],
    ahead: int,
) -> Iterator[Result]:
    """Call a function in a pool, at most ``ahead`` calls before the result that is asked for.

    Unlike ``Executor.map`` it takes arguments only as results are taken. What has not begun when
    the iteration ends early is cancelled.
    """
    pending: deque[Future[Result]] = deque()
    try:
        for argument in arguments:
            pending.append(pool.submit(function, argument))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
