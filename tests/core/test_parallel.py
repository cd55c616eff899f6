"""Thread pools: results do not depend on their size, and no thread outlives them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator

import pytest
import torch
from reference import gaussian

from lorsmerge_cli.core.low_rank_sparse import dense
from lorsmerge_cli.core.parallel import default_threads, run_parallel
from lorsmerge_cli.core.pruning import PRUNERS, prune
from lorsmerge_cli.core.pruning.budget import budget


@pytest.fixture(autouse=True, params=[1, 2])
def _torch_threads(request: pytest.FixtureRequest):
    """The caller's setting is restored."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    try:
        assert torch.get_num_threads() == request.param
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("shape", [(96, 320), (320, 96)])
def test_results_do_not_depend_on_threads(pruner: str, shape: tuple[int, int]) -> None:
    matrices = [gaussian(*shape, seed).float() for seed in range(6)]

    def work(i: int) -> torch.Tensor:
        return dense(prune(matrices[i], pruner, budget(shape, 0.1, 0.2)))

    results = [dict(run_parallel(work, range(6), threads)) for threads in (1, 2, 4)]
    for result in results[1:]:
        assert result.keys() == results[0].keys() == set(range(6))
        assert all(torch.equal(result[i], results[0][i]) for i in range(6))


@pytest.mark.slow
def test_results_do_not_depend_on_threads_at_full_size() -> None:
    matrices = [gaussian(768, 768, seed).float() for seed in range(4)]

    def work(i: int) -> torch.Tensor:
        return dense(prune(matrices[i], "lors", budget((768, 768), 0.05, 0.4)))

    results = [dict(run_parallel(work, range(4), threads)) for threads in (1, 2, 4)]
    for result in results[1:]:
        assert all(torch.equal(result[i], results[0][i]) for i in range(4))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_every_item_once(threads: int) -> None:
    assert sorted(run_parallel(lambda i: i * i, range(100), threads)) == [
        (i, i * i) for i in range(100)
    ]
    assert list(run_parallel(lambda i: i, (), threads)) == []


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_an_exception_ends_all(threads: int) -> None:
    begun: list[int] = []

    def work(i: int) -> int:
        begun.append(i)
        time.sleep(0.001)
        if i == 5:
            raise ZeroDivisionError("item 5")
        return i

    with pytest.raises(ZeroDivisionError, match="item 5"):
        list(run_parallel(work, range(10_000), threads))
    assert len(begun) <= 6 + 5 * threads  # the queue is short
    count = len(begun)
    time.sleep(0.02)
    assert len(begun) == count  # nothing runs on


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_any_exception_of_a_thread_ends_all(error: type[BaseException]) -> None:
    def work(i: int) -> int:
        if i == 2:
            raise error
        return i

    with pytest.raises(error):
        list(run_parallel(work, range(1000), 2))
    assert not pool_threads()


def test_the_earliest_of_several_errors_is_raised() -> None:
    ready = threading.Barrier(4, timeout=10)

    def work(i: int) -> None:
        ready.wait()
        raise LookupError(i)

    for _ in range(5):
        with pytest.raises(LookupError) as caught:
            for _ in run_parallel(work, slow_after(range(4)), 4):
                pass
        assert caught.value.args == (0,)


def slow_after(items: Iterable[int]) -> Iterator[int]:
    """Yield the items, and wait until all work on them has ended."""
    yield from items
    time.sleep(0.1)


def pool_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


@pytest.mark.parametrize("threads", [1, 3])
def test_an_exception_of_the_caller_ends_all(threads: int) -> None:
    """No work runs after the caller's files are closed."""
    running: list[int] = []

    def work(i: int) -> int:
        running.append(i)
        time.sleep(0.02)
        running.remove(i)
        return i

    def call() -> None:
        for _ in run_parallel(work, range(1000), threads):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        call()
    assert running == pool_threads() == []


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_waits_for_what_runs(threads: int, times: int) -> None:
    """The first ends the wait for results, a second one comes during the wait for running work."""
    running: list[int] = []
    begun = threading.Event()

    def work(i: int) -> int:
        running.append(i)
        begun.set()
        time.sleep(0.4)
        running.remove(i)
        return i

    def press() -> None:
        begun.wait(10)
        for _ in range(times):
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(run_parallel(work, range(1000), threads))
    finally:
        presser.join()
    assert running == pool_threads() == []
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("threads", [1, 4])
def test_an_exception_of_the_items(threads: int) -> None:
    def items():
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(run_parallel(lambda i: i, items(), threads))


@pytest.mark.parametrize("threads", [1, 2])
def test_items_are_taken_as_they_are_needed(threads: int) -> None:
    taken = 0

    def items():
        nonlocal taken
        for item in range(1000):
            taken += 1
            yield item

    results = run_parallel(lambda i: i, items(), threads)
    next(results)
    assert taken <= 5 * threads
    results.close()  # and a caller that leaves early leaves no thread behind
    assert threading.active_count() <= 1 + sum(
        not thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate()
    )


def test_kernels_are_single_threaded() -> None:
    assert {
        threads for _, threads in run_parallel(lambda _: torch.get_num_threads(), range(8), 2)
    } == {1}


def test_threads_run_beside_each_other() -> None:
    barrier = threading.Barrier(2, timeout=10)
    assert len(list(run_parallel(lambda _: barrier.wait(), range(2), 2))) == 2


def test_default_threads() -> None:
    assert default_threads() >= 1
