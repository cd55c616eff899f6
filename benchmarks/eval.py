"""Time of beam search beside transformers' own, and the distance to the floor, in one run.

The same clips are decoded by one model: in a loop of `model.generate` over single clips; by the same
in batches; by transformers' pipeline; by `lorsmerge`, which takes mixed languages and tasks in a batch
and keeps one cross-attention for all beams of an utterance; so with the features kept from an earlier
decoding, as in a search; and by CTranslate2 (what faster-whisper decodes with), where it is installed.
Audio is read and its features are made in all but one. The floor is what the multiplications of the
model take at the rate of a large matrix product.

    python benchmarks/eval.py --rounds 3 -o benchmarks/eval.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from transformers import pipeline

from lorsmerge_cli.data.audio import RATE
from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.dataset import load_data
from lorsmerge_cli.data.languages import WHISPER_TASKS
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.speech.decoding.clips import DecodingSettings, decode
from lorsmerge_cli.speech.engines import ENGINES, Decoder
from lorsmerge_cli.speech.features import Features
from lorsmerge_cli.speech.model import SpeechModel, audio_of
from lorsmerge_cli.speech.source import ModelSource, find_model

BUNDLE = Path(__file__).parent.parent / "examples" / "demo" / "bundle"
SETS = ("ca_asr", "de_asr", "fr_st")
BATCH = 16
NAMES = {
    "loop": "`model.generate`, clip by clip",
    "batches": f"`model.generate`, {BATCH} clips of one language and task",
    "pipeline": f"transformers' pipeline, {BATCH} clips of one language and task",
    "ours": "lorsmerge",
    "again": "lorsmerge, features kept",
    "ct2": "lorsmerge, `--engine ct2`",
}


def generate(speech: SpeechModel, rows: list[Utterance], beam: int, tokens: int) -> list[str]:
    """Texts by transformers' own call; rows of one language and task."""
    found = speech.model.generate(
        speech.features([audio_of(row) for row in rows]), num_beams=beam, do_sample=False,
        language=rows[0].language, task=WHISPER_TASKS[rows[0].task], max_new_tokens=tokens,
    )  # fmt: skip
    return speech.texts(found)


def in_pipeline(
    speech: SpeechModel, rows: list[Utterance], beam: int, tokens: int
) -> dict[str, str]:
    """Texts by id, by transformers' pipeline for speech recognition."""
    own = deepcopy(speech.processor)
    own.tokenizer.pad_token = own.tokenizer.eos_token  # batches need one
    recogniser: Any = pipeline(
        "automatic-speech-recognition", model=speech.model, tokenizer=own.tokenizer,
        feature_extractor=own.feature_extractor, batch_size=BATCH,
    )  # fmt: skip
    found = {}
    for language, task in sorted({(row.language, row.task) for row in rows}):
        group = [row for row in rows if (row.language, row.task) == (language, task)]
        said = recogniser(
            [{"raw": audio_of(row), "sampling_rate": RATE} for row in group],
            generate_kwargs={"num_beams": beam, "do_sample": False, "language": language,
                             "task": WHISPER_TASKS[task], "max_new_tokens": tokens},
        )  # fmt: skip
        found |= {row.id: each["text"].strip() for row, each in zip(group, said, strict=True)}
    return found


def in_ct2(
    model: Decoder, rows: list[Utterance], settings: DecodingSettings, speech: SpeechModel
) -> dict[str, str]:
    """Texts by id, by CTranslate2."""
    answers = model.answers(rows, settings, lambda row, answer: None, Features(speech))
    return {name: answer.text for name, answer in answers.items()}


def in_batches(
    speech: SpeechModel, rows: list[Utterance], beam: int, tokens: int, size: int
) -> dict[str, str]:
    """Texts by id, in batches of similar length."""
    groups: dict[tuple[str, str], list[Utterance]] = {}
    for row in sorted(rows, key=lambda row: -(row.duration or 0.0)):
        groups.setdefault((row.language, row.task), []).append(row)
    found = {}
    for group in groups.values():
        for start in range(0, len(group), size):
            part = group[start : start + size]
            texts = generate(speech, part, beam, tokens)
            found |= dict(zip([row.id for row in part], texts, strict=True))
    return found


def flops(speech: SpeechModel, clips: int, tokens: int) -> float:
    """Multiplications and additions of encoding clips and of taking tokens through the decoder."""
    config = speech.model.config
    positions, width = config.max_source_positions, config.d_model

    def weights(module: Any) -> int:
        return sum(p.numel() for p in module.parameters() if p.dim() > 1)

    encoder, decoder = speech.model.model.encoder, speech.model.model.decoder
    cross = sum(weights(layer.encoder_attn) // 2 for layer in decoder.layers)  # keys and values
    heard = weights(encoder) + cross + 2 * config.encoder_layers * positions * width
    said = (
        weights(decoder) - cross - weights(decoder.embed_positions)
    )  # its embedding is the output's
    said += 2 * config.decoder_layers * positions * width
    return 2.0 * (clips * positions * heard + tokens * said)


def rate(clock: Callable[[], float] = time.perf_counter) -> float:
    """Floating point operations of a second, by a clock, in a large product of float32 matrices."""
    a = torch.rand(2048, 2048)
    a @ a
    seconds = []
    for _ in range(5):
        began = clock()
        a @ a
        seconds.append(clock() - began)
    return 2 * 2048**3 / min(seconds)


def measure(
    speech: SpeechModel,
    source: ModelSource,
    rows: list[Utterance],
    beam: int,
    tokens: int,
    rounds: int,
    wanted: list[str],
) -> tuple[dict[str, list[float]], dict[str, int], float]:
    """Seconds of every round by name, texts that differ from the loop's, and the floor."""
    settings = DecodingSettings(beam=beam, max_tokens=tokens)
    kept = Features(speech, 1 << 30)
    decode(speech, rows, replace(settings, beam=1), features=kept)
    seen: list[int] = []
    hook = speech.model.model.decoder.register_forward_pre_hook(
        lambda module, arguments, named: seen.append(named["input_ids"].numel()), with_kwargs=True
    )
    decode(speech, rows, settings, features=kept)
    hook.remove()
    floor = flops(speech, len(rows), sum(seen)) / rate()
    ways: dict[str, Callable[[], dict[str, str]]] = {
        "loop": lambda: in_batches(speech, rows, beam, tokens, 1),
        "batches": lambda: in_batches(speech, rows, beam, tokens, BATCH),
        "pipeline": lambda: in_pipeline(speech, rows, beam, tokens),
        "ours": lambda: decode(speech, rows, settings),
        "again": lambda: decode(speech, rows, settings, features=kept),
    }
    if find_spec("ctranslate2"):
        other_engine = ENGINES["ct2"].open(source, "float32", "cpu")
        other_engine.prepare(settings)
        ways["ct2"] = lambda: in_ct2(other_engine, rows, settings, speech)
    ways = {name: way for name, way in ways.items() if name in wanted}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    texts = {}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            texts[name] = way()
            seconds[name].append(time.perf_counter() - began)
            print(f"beam {beam}, {NAMES[name]}: {seconds[name][-1]:.1f} s", flush=True)
    other = {
        name: sum(found[row.id] != texts["loop"][row.id] for row in rows)
        for name, found in texts.items()
    }
    return seconds, other, floor


def demo_rows(count: int) -> tuple[ModelSource, list[Utterance]]:
    """The demo's base and as many clips of three test sets."""
    rows = load_data([BUNDLE / f"{name}.test.jsonl" for name in SETS]).utterances
    rows = [replace(row, id=f"{row.language}-{row.task}-{row.id}") for row in rows]
    return find_model(BUNDLE / "base", name="demo"), rows[:: len(rows) // count][:count]


def shaped(size: str, folder: Path, count: int) -> tuple[ModelSource, list[Utterance]]:
    """A Whisper of a size with random weights and a window of 30 s, and noise to hear."""
    script = BUNDLE.parent.parent / "make_models.py"
    command = [sys.executable, str(script), str(folder), "--size", size, "--finetunes", "unused"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    settings = folder / "base" / "generation_config.json"
    config = json.loads(settings.read_text())
    first = config["no_timestamps_token_id"] + 1
    vocabulary = json.loads((folder / "base" / "config.json").read_text())["vocab_size"]
    # of random weights `generate` would take timestamps for the ends of windows, and go on
    config["suppress_tokens"] = list(range(first, vocabulary))
    settings.write_text(json.dumps(config))
    noise = np.random.default_rng(0)
    rows = []
    for number in range(count):
        path = folder / f"{number}.wav"
        soundfile.write(path, 0.1 * noise.standard_normal(16000 * (5 + number)).astype("f4"), 16000)
        rows.append(Utterance(f"{number}", AudioFile(path), "", "ca", "asr", 5.0 + number))
    return find_model(folder / "base", name=size), rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--size", default="tiny", help="of the model with random weights")
    parser.add_argument("--noises", type=int, default=4, help="clips that it hears")
    parser.add_argument(
        "--ways", nargs="+", default=list(NAMES), choices=list(NAMES), help="with the loop"
    )
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    lines = [
        "# Beam search beside transformers' own", "",
        f"{os.cpu_count()} cores ({platform.machine()}), float32, Python {platform.python_version()}, "
        f"median of {arguments.rounds} rounds. Made by `python benchmarks/eval.py --rounds "
        f"{arguments.rounds} --clips {arguments.clips} --size {arguments.size} --noises "
        f"{arguments.noises} --ways {' '.join(arguments.ways)}`.", "",
        "| model, beam | decoded by | seconds | from - to | times the loop's speed | times the floor | other texts |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip

    def add(name: str, source: ModelSource, rows: list[Utterance], beam: int, tokens: int) -> None:
        speech = source.open(torch.float32, "cpu")
        wanted = ["loop", *arguments.ways]
        seconds, other, floor = measure(
            speech, source, rows, beam, tokens, arguments.rounds, wanted
        )
        loop = statistics.median(seconds["loop"])
        for way, found in seconds.items():
            middle = statistics.median(found)
            lines.append(
                f"| {name}, {beam} | {NAMES[way]} | {middle:.1f} | {min(found):.1f} - {max(found):.1f} "
                f"| {loop / middle:.1f} | {middle / floor:.1f} | {other[way]} of {len(rows)} |"
            )

    demo, rows = demo_rows(arguments.clips)
    for beam in (1, 5, 20):
        add("the demo's", demo, rows, beam, 28)
    with tempfile.TemporaryDirectory() as folder:
        large, noise = shaped(arguments.size, Path(folder), arguments.noises)
        for beam in (1, 20):
            add(f"Whisper {arguments.size}'s shape", large, noise, beam, 30)
    lines += [
        "", "Texts are other ones than the loop's. transformers' pipeline takes the tokens of the demo's "
        "vocabulary, which has no timestamps, for times, and returns no text.",
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
