"""Work on independent tensors in parallel: one thread per core, each with single-threaded kernels.

Many small decompositions scale far better this way than with all cores in each of them, and no
result depends on the number of threads.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch
from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_threads() -> int:
    """Return the number of cores that this process may use.

    Example:
        >>> default_threads() >= 1
        True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_parallel(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[tuple[Item, Result]]:
    """Run `work` on every item, `threads` at a time, and yield (item, result) as they finish.

    After an exception in one, those that have not started are dropped and those that run are
    waited for. Of several exceptions at once, that of the earliest item is raised.

    Args:
        work: what is called in a thread with each item.
        items: taken as threads become free.
        threads: how many run at a time.

    Example:
        >>> dict(run_parallel(abs, [-1, 2], threads=2))
        {-1: 1, 2: 2}
    """
    _share_heap()
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1))
    pending: dict[Future[Result], Item] = {}
    with threadpool_limits(1):
        try:
            for item in items:
                pending[pool.submit(work, item)] = item
                while len(pending) >= 4 * threads:  # keeps the queue short: an error shows soon
                    yield from _ended(pending)
            while pending:
                yield from _ended(pending)
        finally:
            _shut_down(pool, pending)
            torch.set_num_threads(before)


def _shut_down(pool: ThreadPoolExecutor, pending: Iterable[Future[Any]]) -> None:
    """Wait for running work, which may write to a file of the caller, even after a second Ctrl-C.

    The work is waited for, not its thread: when a wait for a thread is interrupted, Python 3.11
    takes the thread for finished.
    """
    pool.shutdown(wait=False, cancel_futures=True)
    running = [future for future in pending if not future.cancelled()]
    try:
        wait(running)
    except KeyboardInterrupt:
        wait(running)
        raise
    finally:
        pool.shutdown(wait=True)


def _share_heap() -> None:
    """Keep glibc from giving each thread a heap of its own, which keeps what was freed.

    With such heaps two pruning threads took up to 100 MB more, and were no faster.
    """
    arena_max = -8  # M_ARENA_MAX of malloc.h
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # another libc may lack it
        if mallopt is not None:
            mallopt(arena_max, 1)


def _ended(pending: dict[Future[Result], Item]) -> Iterator[tuple[Item, Result]]:
    done = wait(pending, return_when=FIRST_COMPLETED).done
    for future in [each for each in pending if each in done]:
        item = pending.pop(future)
        yield item, future.result()
