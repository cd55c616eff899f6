"""What a trial of a search costs before its evaluation, beside a full merge, in one run.

A merge in memory, loaded into the model that stays loaded, is timed for a point of each sort: the
first one, which decomposes; another pair of ratios; another lambda. The full merge is the `merge`
operation in the same process, which reads the same mapped files and writes its output. Seconds are
the processor's, which other work on the machine changes little, and ratios are of medians.

    python benchmarks/search.py --rounds 3 -o benchmarks/search.md
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from merge import build

from lorsmerge_cli.core.parallel import default_threads
from lorsmerge_cli.operations.merge.inputs import open_inputs
from lorsmerge_cli.operations.merge.plan import plan_merge
from lorsmerge_cli.operations.merge.run import run_merge
from lorsmerge_cli.operations.search.merges import RepeatedMerge
from lorsmerge_cli.operations.search.scores import Scorer
from lorsmerge_cli.recipe.recipe import DeltaEntry, Recipe
from lorsmerge_cli.speech.decoding.clips import DecodingSettings
from lorsmerge_cli.speech.source import find_model

FINETUNES = ("ca_asr", "de_asr", "de_st")
LARGEST, CACHE = 0.05, 8 << 30
NAMES = {
    "merge": "a full `merge`, svp 0.03, mp 0.4",
    "first": "the first trial: svp 0.03, mp 0.4 (decomposes at 0.05)",
    "ratios": "other ratios: svp 0.05, mp 0.2",
    "lambda": "another lambda",
    "back": "ratios that were tried before",
    "own": "a lambda for each delta, the first time",
    "own again": "other lambdas for each delta",
}


def recipe_of(folder: Path, svp: float, mp: float, scale: float, own: bool = False) -> Recipe:
    """The three fine-tunes of a folder."""
    deltas = tuple(
        DeltaEntry(str(folder / name), **({"scale": scale * (n + 1)} if own else {}))
        for n, name in enumerate(FINETUNES)
    )
    return Recipe(str(folder / "base"), deltas, svp=svp, mp=mp, scale=scale)


def measure(folder: Path, threads: int, results: dict[str, list[float]]) -> None:
    """One round, with nothing kept from the one before."""

    def timed(name: str, work: Callable[[], object]) -> None:
        began = time.process_time()
        work()
        results[name].append(time.process_time() - began)
        print(f"{NAMES[name]}: {results[name][-1]:.2f} s", flush=True)

    first = recipe_of(folder, 0.03, 0.4, 0.15)
    plan = plan_merge(first, folder / "out.safetensors", threads=threads, force=True)
    timed("merge", lambda: run_merge(plan))
    inputs = open_inputs(first.resolved())
    speech = find_model(folder / "base").open(torch.float32, "cpu")
    repeated = RepeatedMerge(inputs, LARGEST, torch.device("cpu"), threads, CACHE)
    scorer = Scorer(speech, repeated, "greedy", DecodingSettings(), 0)
    for name, recipe in (
        ("first", first),
        ("ratios", recipe_of(folder, 0.05, 0.2, 0.15)),
        ("lambda", recipe_of(folder, 0.05, 0.2, 0.3)),
        ("back", recipe_of(folder, 0.03, 0.4, 0.3)),
        ("own", recipe_of(folder, 0.05, 0.2, 0.1, own=True)),
        ("own again", recipe_of(folder, 0.05, 0.2, 0.2, own=True)),
    ):
        timed(name, lambda recipe=recipe: scorer.load(recipe))


def report(results: dict[str, list[float]], size: str, threads: int) -> str:
    """Markdown."""
    whole = statistics.median(results["merge"])
    lines = [
        "# What a trial of a search costs before its evaluation",
        "",
        f"Whisper {size}'s size, three float32 fine-tunes; {os.cpu_count()} cores "
        f"({platform.machine()}), {threads} threads, Python {platform.python_version()}; median of "
        f"{len(results['merge'])} rounds, warm page cache, imports not counted. Made by "
        "`python benchmarks/search.py`.",
        "",
        "| | CPU seconds | from - to | share of a full merge |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, seconds in results.items():
        middle = statistics.median(seconds)
        lines.append(
            f"| {NAMES[name]} | {middle:.2f} | {min(seconds):.2f} - {max(seconds):.2f} | "
            f"{middle / whole:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("bench/merge"), help="for the models")
    parser.add_argument("--size", default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    build(arguments.folder, arguments.size)
    results: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(arguments.rounds):
        measure(arguments.folder, arguments.threads, results)
    text = report(results, arguments.size, arguments.threads)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
