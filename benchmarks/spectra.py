"""Time of the methods that decompose, on single matrices: beside LoRS, and of adapters by both routes.

Everything runs in one process with one thread (`--threads`) and takes turns, so that ratios hold on a
busy machine: they are medians of the ratios of each round.

    python benchmarks/spectra.py --rounds 5 -o benchmarks/spectra.md
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest import mock

import torch
from threadpoolctl import threadpool_limits

from lorsmerge_cli.core import core_space
from lorsmerge_cli.core.low_rank_sparse import LowRankSparse
from lorsmerge_cli.core.merging import Term, merge_tensor
from lorsmerge_cli.core.methods import find_method
from lorsmerge_cli.core.pruning.budget import Budget, budget

SMALL = [(768, 768), (3072, 768), (768, 3072)]  # the matrices of Whisper small
LARGE = [(1280, 1280), (5120, 1280)]  # of large-v3; fc2 is fc1 turned
LORS = {"svp": 0.03, "mp": 0.4}
SPECTRAL = ["iso_c", "boost", "star", "tsv_m"]
TURNING = ["iso_c", "boost", "tsv_m"]
Job = Callable[[], object]


def merging(
    name: str, deltas: list[torch.Tensor] | list[LowRankSparse], keep: Budget | None
) -> Job:
    """A merge of one tensor, base and rounding included."""
    method, base = find_method(name), torch.zeros(deltas[0].shape)
    return lambda: merge_tensor(
        base, [Term(delta, 0.3, keep) for delta in deltas], method, torch.float32
    )


def in_products(job: Job) -> Job:
    """The same merge without core space."""

    def run() -> object:
        with mock.patch.object(core_space, "LARGEST", -1):
            return job()

    return run


def timed(jobs: dict[str, Job], rounds: int, label: str) -> dict[str, list[float]]:
    """Seconds of each job in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds):
        for name, job in jobs.items():
            began = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - began)
        print(f"{label}, round {number + 1}", flush=True)
    return seconds


def ratio(ours: list[float], theirs: list[float]) -> float:
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def beside_lors(shape: tuple[int, int], count: int, rounds: int) -> str:
    """A row of the first table."""
    deltas = [torch.randn(shape) * 0.01 for _ in range(count)]
    jobs = {"lors": merging("lors", deltas, budget(shape, **LORS))}
    for name in SPECTRAL:
        jobs[name] = merging(name, deltas, Budget(0, 0) if find_method(name).pruner else None)
    seconds = timed(jobs, rounds, f"{shape}, {count} deltas")
    cells = [f"{ratio(seconds[name], seconds['lors']):.1f}" for name in SPECTRAL]
    milliseconds = 1e3 * median(seconds["lors"])
    return f"| {shape[0]} x {shape[1]} | {count} | {milliseconds:,.0f} ms | {' | '.join(cells)} |\n"


def by_both_routes(shape: tuple[int, int], count: int, rank: int, rounds: int) -> str:
    """Rows of the second table."""
    d, k = shape
    deltas = [
        LowRankSparse(torch.randn(d, rank) * 0.1, torch.randn(rank, k) * 0.1) for _ in range(count)
    ]
    jobs = {}
    for name in TURNING:
        job = merging(name, deltas, None)
        jobs |= {f"{name} core": job, f"{name} products": in_products(job)}
    seconds = timed(jobs, rounds, f"{shape}, {count} adapters")
    rows = ""
    for name in TURNING:
        core, products = seconds[f"{name} core"], seconds[f"{name} products"]
        rows += (
            f"| `{name}` | {d} x {k} | {count} | {1e3 * median(core):,.0f} ms "
            f"| {1e3 * median(products):,.0f} ms | {ratio(core, products):.3f} |\n"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rank", type=int, default=32, help="of the adapters")
    parser.add_argument("--counts", type=int, nargs="+", default=[3, 10], help="of deltas")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    with threadpool_limits(arguments.threads):
        text = (
            "# Methods that decompose, on single matrices\n\n"
            f"Random float32 matrices; {os.cpu_count()} cores ({platform.machine()}), threads: "
            f"{arguments.threads}; medians of {arguments.rounds} rounds in one process, jobs in turns, "
            "so that ratios hold where the machine is busy and times may not. Made by `python "
            "benchmarks/spectra.py`.\n\n"
            f"## Times LoRS (svp {LORS['svp']}, mp {LORS['mp']})\n\n"
            f"| matrix | deltas | LoRS | {' | '.join(f'`{name}`' for name in SPECTRAL)} |\n"
            f"| --- | ---: | ---: |{' ---: |' * len(SPECTRAL)}\n"
        )
        for count in arguments.counts:
            for shape in SMALL:
                text += beside_lors(shape, count, arguments.rounds)
        text += (
            f"\n## Adapters of rank {arguments.rank}: in core space, and as dense products\n\n"
            "| method | matrix | adapters | core space | products | ratio |\n"
            "| --- | --- | ---: | ---: | ---: | ---: |\n"
        )
        for shape in [SMALL[0], SMALL[1], *LARGE]:
            for count in arguments.counts:
                text += by_both_routes(shape, count, arguments.rank, arguments.rounds)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
