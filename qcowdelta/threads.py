"""Work spread over threads, its results in the order of its arguments."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
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

    Unlike ``Executor.map`` it takes arguments only as results are taken, except for the first
    ones, whose calls begin at once. What has not begun when the iteration, or taking the first
    arguments, ends early is cancelled.
    """
    rest = iter(arguments)
    pending: deque[Future[Result]] = deque()
    results = _results(pending, (pool.submit(function, argument) for argument in rest))
    try:
        pending.extend(pool.submit(function, argument) for argument in islice(rest, ahead))
    except BaseException:
        _cancel(pending)
        raise
    return results


def _results(pending: deque[Future[Result]], more: Iterator[Future[Result]]) -> Iterator[Result]:
    try:
        for future in more:
            pending.append(future)
            yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        _cancel(pending)


def _cancel(pending: Iterable[Future[Result]]) -> None:
    for future in pending:
        future.cancel()
