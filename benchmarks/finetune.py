"""Time of a training step beside a plain PyTorch loop, and the distance to the floor, in one run.

Both train the same model on the same clips, batches, loss and Adam, with gradients that are accumulated
and clipped. The features are made in the first epoch, and are there in the later ones: `lorsmerge` keeps
them, and the plain loop has a dict. The time between two steps of one epoch counts, so that neither dev
set nor checkpoints are in it. Rounds of both alternate, and the fastest step of each counts: by the clock,
and by the processor's time, which other programs beside this one change little. The floor is what the
multiplications take at the rate of a large matrix product, by the processor's time.

    python benchmarks/finetune.py --rounds 3 -o benchmarks/finetune.md
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from eval import demo_rows, flops, rate, shaped
from torch import Tensor

from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.speech.batches import IGNORED, collate
from lorsmerge_cli.speech.model import SpeechModel, audio_of
from lorsmerge_cli.speech.settings import TrainingSettings
from lorsmerge_cli.speech.source import find_model
from lorsmerge_cli.speech.training import TrainingHooks, train

EPOCHS = 2
Stamp = tuple[float, float]  # seconds, and seconds of the processor
Steps = dict[str, list[Stamp]]  # "made" and "kept" -> of each step


def ours(
    speech: SpeechModel, rows: list[Utterance], settings: TrainingSettings, folder: Path
) -> Steps:
    """Seconds between the steps of each epoch in `lorsmerge`'s training."""
    stamps: list[Stamp] = []

    def step(done: int, total: int) -> None:
        if done:
            stamps.append((time.perf_counter(), time.process_time()))

    hooks = TrainingHooks(lambda epoch: {"score": epoch}, lambda epochs: None, lambda: False, step)
    train(speech, rows, settings, folder, device="cpu", hooks=hooks)
    return between(stamps)


def plain(speech: SpeechModel, rows: list[Utterance], settings: TrainingSettings) -> Steps:
    """The same of a loop that is written down in a few lines."""
    model = speech.model.train()
    model.model.encoder.embed_positions.requires_grad_(False)
    weights = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.Adam(weights, lr=settings.learning_rate)
    start, pad = model.config.decoder_start_token_id, speech.processor.tokenizer.eos_token_id
    size, count = settings.batches(1)
    features: dict[str, Tensor] = {}
    order = list(rows)
    stamps: list[Stamp] = []
    for _ in range(EPOCHS):
        random.Random(0).shuffle(order)
        for first in range(0, len(order), settings.effective_batch):
            part = order[first : first + settings.effective_batch]
            labels = [speech.labels(row) for row in part]
            for row in part:
                if row.id not in features:
                    features[row.id] = speech.features([audio_of(row)])[0]
            tokens = sum(map(len, labels))
            for begin in range(0, len(part), size):
                items = [
                    {"features": features[row.id], "labels": said}
                    for row, said in list(zip(part, labels, strict=True))[begin : begin + size]
                ]
                batch = collate(items, start=start, pad=pad)
                logits = model(
                    input_features=batch["input_features"],
                    decoder_input_ids=batch["decoder_input_ids"],
                ).logits
                loss = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1),
                    batch["labels"].flatten(),
                    ignore_index=IGNORED,
                    reduction="sum",
                )
                (loss / tokens).backward()
            torch.nn.utils.clip_grad_norm_(weights, settings.clip)
            adam.step()
            adam.zero_grad()
            stamps.append((time.perf_counter(), time.process_time()))
    assert count * size == settings.effective_batch
    return between(stamps)


def between(stamps: list[Stamp]) -> Steps:
    """Seconds between the steps of one epoch: the first, in which features are made, and the others."""
    steps = len(stamps) // EPOCHS
    spans = [
        [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(stamps[n : n + steps])]
        for n in range(0, len(stamps), steps)
    ]
    return {"made": spans[0], "kept": [span for each in spans[1:] for span in each]}


def measure(
    opened: Callable[[], SpeechModel],
    rows: list[Utterance],
    settings: TrainingSettings,
    rounds: int,
) -> tuple[dict[str, Steps], float]:
    """Seconds of each step by who made it, and the floor."""
    found: dict[str, Steps] = {"plain": {}, "ours": {}}
    rates = []
    for number in range(rounds):
        rates.append(rate(time.process_time))
        with tempfile.TemporaryDirectory() as folder:
            ways: dict[str, Callable[[], Steps]] = {
                "plain": lambda: plain(opened(), rows, settings),
                "ours": lambda: ours(opened(), rows, settings, Path(folder)),
            }
            for name, way in sorted(ways.items(), reverse=number % 2 == 0):
                for when, seconds in way().items():
                    found[name].setdefault(when, []).extend(seconds)
                    wall, busy = map(min, zip(*seconds, strict=True))
                    print(
                        f"round {number + 1}, {name}, {when}: {wall:.3f} s, {busy:.3f} busy",
                        flush=True,
                    )
    speech = opened()
    tokens = settings.effective_batch * statistics.mean(len(speech.labels(row)) for row in rows)
    # the gradients of the inputs and of the weights take as much as the outputs each
    work = 3 * flops(speech, settings.effective_batch, int(tokens))
    return found, work / max(rates)


def table(
    name: str, settings: TrainingSettings, found: dict[str, Steps], floor: float, quiet: bool
) -> list[str]:
    """Lines of the page's table; a clock beside other programs tells nothing of a ratio."""
    size, count = settings.batches(1)
    lines = []
    for when, words in (("made", "made"), ("kept", "there")):
        wall, busy = (
            {way: min(step[n] for step in steps[when]) for way, steps in found.items()}
            for n in (0, 1)
        )
        for way, title in (("plain", "plain PyTorch loop"), ("ours", "lorsmerge")):
            by_clock = f"{wall[way] / wall['plain']:.2f}" if quiet else "-"
            lines.append(
                f"| {name}, {size} x {count} clips | {words} | {title} | {wall[way]:.3f} | {by_clock} | "
                f"{busy[way]:.3f} | {busy[way] / busy['plain']:.2f} | {busy[way] / floor:.1f} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=128, help="of the demo")
    parser.add_argument("--size", default="tiny", help="of the model with random weights")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    quiet = load < 0.5
    threads, cores = torch.get_num_threads(), os.cpu_count()
    lines = [
        "# A training step beside a plain PyTorch loop", "",
        f"{threads} thread{'s' * (threads > 1)} of {cores} cores ({platform.machine()}), float32, Python "
        f"{platform.python_version()}, PyTorch {torch.__version__}. Seconds of the fastest step of "
        f"{arguments.rounds} alternating rounds of {EPOCHS} epochs, by the clock and by the processor's time. "
        f"The load of other programs was {load:.1f} at the start"
        + ("." if quiet else ": the clock tells more of them than of the step.")
        + f" Made by `python benchmarks/finetune.py --rounds {arguments.rounds} --clips {arguments.clips}`.",
        "",
        "| model, batch | features | trained by | clock | ratio | processor | ratio | times the floor |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip

    def add(name: str, opened: Callable[[], Any], rows: list[Utterance], batch: int) -> None:
        settings = TrainingSettings(
            learning_rate=1e-6, epochs=EPOCHS, effective_batch=batch, keep=1
        )
        if batch < 8:
            settings = replace(settings, batch_size=batch)
        found, floor = measure(opened, rows, settings, arguments.rounds)
        lines.extend(table(name, settings, found, floor, quiet))

    _, rows = demo_rows(arguments.clips)
    add("the demo's", lambda: demo_rows(1)[0], rows, 32)
    with tempfile.TemporaryDirectory() as folder:
        _, noise = shaped(arguments.size, Path(folder), 3)
        base = Path(folder) / "base"
        add(
            f"Whisper {arguments.size}'s shape",
            lambda: find_model(base, name=arguments.size).open(torch.float32, "cpu"), noise, 1,
        )  # fmt: skip
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
