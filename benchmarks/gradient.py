"""What a step of `search --sampler gradient` takes beside a step of plain fine-tuning, in one run.

Each of the two is a process of its own, with the same clips in batches of the same size: the second
is forward pass, backward pass and AdamW of PyTorch on all weights. The first has the same passes,
makes the merge before them, and multiplies the gradient by the deltas behind them; the time of the
making is also told apart. Weights and sound are random. Seconds are the processor's. Memory is the
peak of what the process itself holds (the deltas of `ta` are mapped from their files, and may be put
out of memory at any time), PyTorch and the model with its loading included.

    python benchmarks/gradient.py -o benchmarks/gradient.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from merge import FINETUNES, build

from lorsmerge_cli import delta
from lorsmerge_cli.operations.search.gradient import CoefficientGradient
from lorsmerge_cli.operations.search.merges import RepeatedMerge
from lorsmerge_cli.operations.search.plan import SearchPlan, plan_search
from lorsmerge_cli.operations.search.scores import Scorer
from lorsmerge_cli.recipe.search_settings import SearchSettings
from lorsmerge_cli.recipe.space import make_space
from lorsmerge_cli.speech.decoding.clips import DecodingSettings
from lorsmerge_cli.speech.loss import add_gradients

RATE, SECONDS, LEARNING_RATE = 16_000, 10, 1e-6
NAMES = {
    "finetune": "a step of fine-tuning all weights",
    "ta": "a step of `gradient`, whole deltas",
    "lors": "a step of `gradient`, svp 0.05, mp 0.2, `--by part`",
}


class Peak:
    """The largest amount of memory that the process itself held, in bytes, sampled."""

    def __init__(self) -> None:
        self.largest, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            text = Path("/proc/self/status").read_text()
            line = next(line for line in text.splitlines() if line.startswith("RssAnon"))
            self.largest = max(self.largest, 1024 * int(line.split()[1]))


def make_clips(folder: Path, clips: int) -> Path:
    """Write a dev set of noise of two speakers, with twice as many rows as a step has clips."""
    drawn, rows = np.random.default_rng(0), []
    (folder / "clips").mkdir(exist_ok=True)
    for number in range(2 * clips):
        path = folder / "clips" / f"{number}.wav"
        soundfile.write(path, 0.1 * drawn.standard_normal(RATE * SECONDS), RATE)
        rows.append({
            "id": str(number), "audio_filepath": str(path.resolve()), "text": "a b c d " * 5,
            "source_lang": "ca", "taskname": "asr", "speaker": str(number % 2),
        })  # fmt: skip
    path = folder / "clips.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def plan_of(folder: Path, kind: str, clips: int, threads: int) -> SearchPlan:
    """The plan of a search over the three deltas of a folder."""
    texts = {"scale": "0.15"} | ({"svp": "0.05", "mp": "0.2"} if kind == "lors" else {})
    space = make_space(
        str(folder / "base"), [str(folder / f"{name}.delta") for name in FINETUNES], texts, "scale",
        by="half,module" + (",part" if kind == "lors" else ""), sampler="gradient",
    )  # fmt: skip
    settings = SearchSettings(
        output=folder / "best.toml", sampler="gradient", clips=clips, threads=threads, device="cpu",
        batch_size=clips, force=True,
    )  # fmt: skip
    return plan_search(space, [make_clips(folder, clips)], [], settings)


def measure(folder: Path, kind: str, clips: int, threads: int, rounds: int) -> dict[str, Any]:
    """What steps take in this process, the first one not counted."""
    plan = plan_of(folder, kind, clips, threads)
    found: dict[str, Any] = {"step": [], "merge": [], "lambdas": len(plan.space.lambdas())}
    with Peak() as peak:
        merges = RepeatedMerge(plan.inputs, 0.05, torch.device("cpu"), threads, 32 << 30)
        speech = plan.source.open(torch.float32, "cpu")
        scorer = Scorer(speech, merges, "loss", DecodingSettings(), 1 << 30)
        rows = plan.halves[0]
        weights = dict.fromkeys((row.id for row in rows), 1.0)
        if kind == "finetune":
            speech.model.requires_grad_(True)
            optimizer = torch.optim.AdamW(speech.model.parameters(), lr=LEARNING_RATE)
        else:
            gradient = CoefficientGradient(plan, scorer)
            lambdas = dict.fromkeys(plan.space.lambdas(), 0.15)
        for number in range(rounds + 1):
            began = time.process_time()
            if kind == "finetune":
                optimizer.zero_grad(set_to_none=True)
                add_gradients(speech, rows, weights, scorer.features, clips)
                optimizer.step()
            else:
                gradient.of(lambdas, rows, weights)
            if number:
                found["step"].append(time.process_time() - began)
            began = time.process_time()
            if kind != "finetune":
                gradient.load(lambdas)
            if number:
                found["merge"].append(time.process_time() - began)
    return found | {"peak": peak.largest}


def report(found: dict[str, dict[str, Any]], size: str, clips: int, threads: int) -> str:
    """Markdown."""
    middle = {kind: float(np.median(each["step"])) for kind, each in found.items()}
    plain = found["finetune"]["peak"]
    lines = [
        "# What learning lambdas by gradient takes",
        "",
        f"Whisper {size}'s size, three float32 deltas, {clips} clips a step; {os.cpu_count()} cores "
        f"({platform.machine()}), {threads} threads, Python {platform.python_version()}; median of "
        f"{len(found['ta']['step'])} step(s) behind the first, which also decomposes. Made by `python "
        f"benchmarks/gradient.py --clips {clips} --rounds {len(found['ta']['step'])}`.",
        "",
        "| | lambdas | CPU seconds | beside fine-tuning | of it the merge | memory at most | beside fine-tuning |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind, each in found.items():
        merge = float(np.median(each["merge"]))
        learns = kind != "finetune"
        lines.append(
            f"| {NAMES[kind]} | {each['lambdas'] if learns else ''} | {middle[kind]:.1f} | "
            f"{middle[kind] / middle['finetune']:.2f} | {f'{merge:.1f}' if learns else ''} | "
            f"{each['peak'] / 1e9:.1f} GB | {each['peak'] / plain:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("bench/merge"), help="for the models")
    parser.add_argument("--size", default="small")
    parser.add_argument("--clips", type=int, default=4, help="of a step, all in memory at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=list(NAMES), help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    given = arguments.folder, arguments.clips, arguments.threads
    if arguments.only:
        torch.set_num_threads(arguments.threads)
        folder, clips, threads = given
        print(json.dumps(measure(folder, arguments.only, clips, threads, arguments.rounds)))
        return
    build(arguments.folder, arguments.size)
    for name in FINETUNES:
        if not (arguments.folder / f"{name}.delta").exists():
            delta(
                arguments.folder / "base",
                arguments.folder / name,
                arguments.folder / f"{name}.delta",
            )
    found = {}
    for kind in NAMES:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", kind]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[kind] = json.loads(done.stdout.splitlines()[-1])
        print(f"{NAMES[kind]}: {found[kind]}", flush=True)
    text = report(found, arguments.size, arguments.clips, arguments.threads)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
