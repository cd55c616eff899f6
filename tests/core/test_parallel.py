"""Thread pools: one result whatever their size, and a clean end."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from reference import gaussian

from lorsmerge_cli.core.low_rank_sparse import dense
from lorsmerge_cli.core.parallel import default_threads, run_parallel
from lorsmerge_cli.core.pruning import PRUNERS, prune
from lorsmerge_cli.core.pruning.budget import budget


@pytest.fixture(autouse=True, params=[1, 2])
def _torch_threads(request: pytest.FixtureRequest):
    """Whatever the caller had set is set again."""
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
