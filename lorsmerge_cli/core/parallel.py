"""Independent tensors side by side: one thread per core, each running single-threaded kernels.

Many small decompositions scale far better this way than with all cores inside each of them,
and no result depends on the number of threads.
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
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_parallel(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[tuple[Item, Result]]:
    """Run `work` on every item, `threads` at a time, and yield (item, result) as they end.

    An exception in one ends all: what has not begun is dropped, what runs is waited for. Of
    several at once that of the earliest item is raised.
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
    """Wait for what runs, which may write to a file of the caller, even at a second Ctrl-C.

    Python 3.11 takes a thread for ended when the wait for the thread itself is interrupted.
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
    """Keep glibc from giving each thread a heap of its own, which holds on to what was freed.

    Two threads that prune held up to 100 MB more with heaps of their own, and were no faster.
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
