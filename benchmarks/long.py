"""Time of long recordings beside transformers' long-form generation and faster-whisper, in one run.

A model of random weights with OpenAI's vocabulary hears noise of some minutes: greedy, without
fallback, without the text so far as a prompt, with timestamps. Each way is given one recording at a
time. Windows move by timestamps, so that texts that differ may take another number of windows: what is
compared is the time of a minute of audio.

    python benchmarks/long.py --rounds 3 -o benchmarks/long.md
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from eval import shaped

from lorsmerge_cli import export
from lorsmerge_cli.data.audio import RATE
from lorsmerge_cli.data.recording import open_recording
from lorsmerge_cli.speech.decoding.sequential import LongSettings, ToHear, hear
from lorsmerge_cli.speech.engines import ENGINES
from lorsmerge_cli.speech.model import SpeechModel
from lorsmerge_cli.speech.source import ModelSource

NAMES = {
    "transformers": "transformers' long-form `generate`",
    "ours": "lorsmerge",
    "ct2": "lorsmerge, `--engine ct2`",
    "faster": "faster-whisper",
}


def by_transformers(speech: SpeechModel, wave: np.ndarray, tokens: int) -> str:
    """The text by transformers' own call, which takes the features of the whole recording."""
    extractor = speech.processor.feature_extractor
    given = extractor(
        wave, sampling_rate=RATE, return_tensors="pt", truncation=False, padding="longest",
        return_attention_mask=True,
    )  # fmt: skip
    found = speech.model.generate(
        given.input_features, attention_mask=given.attention_mask, language="ca", task="transcribe",
        return_timestamps=True, num_beams=1, do_sample=False, condition_on_prev_tokens=False,
        max_new_tokens=tokens,
    )  # fmt: skip
    return "".join(speech.processor.batch_decode(found, skip_special_tokens=True)).strip()


def by_faster_whisper(model: Any, wave: np.ndarray, tokens: int) -> str:
    """The text by faster-whisper."""
    segments, _ = model.transcribe(
        wave, language="ca", beam_size=1, temperature=0.0, condition_on_previous_text=False,
        max_new_tokens=tokens, compression_ratio_threshold=None, log_prob_threshold=None,
        no_speech_threshold=None,
    )  # fmt: skip
    return "".join(segment.text for segment in segments).strip()


def ways(
    source: ModelSource, folder: Path, audio: Path, tokens: int
) -> dict[str, Callable[[], tuple[str, int]]]:
    """Name -> a call that returns the text and the windows that it took, 0 where they are not told."""
    speech = source.open(torch.float32, "cpu")
    wave = soundfile.read(audio, dtype="float32")[0]
    settings = LongSettings(
        beam=1, temperatures=(0.0,), logprob=-np.inf, no_speech=np.inf, compression_ratio=np.inf,
        condition=False, max_tokens=tokens,
    )  # fmt: skip

    def ours(ear: Any) -> tuple[str, int]:
        (found,) = hear(speech, [ToHear(open_recording(audio), "ca")], settings, ear=ear)
        return found.text, found.windows

    found: dict[str, Callable[[], tuple[str, int]]] = {
        "transformers": lambda: (by_transformers(speech, wave, tokens), 0),
        "ours": lambda: ours(None),
    }
    if find_spec("ctranslate2"):
        engine = ENGINES["ct2"].open(source, "float32", "cpu")
        ear = engine.ear()
        found["ct2"] = lambda: ours(ear)
    if find_spec("faster_whisper"):
        from faster_whisper import WhisperModel

        export(folder / "base", folder / "ct2", format="ct2")
        model = WhisperModel(
            str(folder / "ct2"), compute_type="float32", cpu_threads=os.cpu_count() or 1
        )
        found["faster"] = lambda: (by_faster_whisper(model, wave, tokens), 0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--tokens", type=int, default=60, help="most of a window")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    lines = [
        "# Long recordings beside transformers and faster-whisper", "",
        f"{os.cpu_count()} cores ({platform.machine()}), float32, Whisper {arguments.size}'s shape, random "
        f"weights, {arguments.minutes:g} minutes of noise, greedy, {arguments.tokens} tokens of a window at "
        f"most, median of {arguments.rounds} rounds. Made by `python benchmarks/long.py --rounds "
        f"{arguments.rounds} --minutes {arguments.minutes:g}`.", "",
        "| by | seconds of a minute | from - to | times transformers' speed | windows | text is lorsmerge's |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]  # fmt: skip
    seconds: dict[str, list[float]] = {}
    texts: dict[str, tuple[str, int]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, _ = shaped(arguments.size, folder, 1)
        audio = folder / "noise.wav"
        noise = 0.1 * np.random.default_rng(0).standard_normal(int(60 * arguments.minutes * RATE))
        soundfile.write(audio, noise.astype("f4"), RATE)
        found = ways(source, folder, audio, arguments.tokens)
        for _ in range(arguments.rounds):
            for way, call in found.items():
                began = time.perf_counter()
                texts[way] = call()
                took = (time.perf_counter() - began) / arguments.minutes
                seconds.setdefault(way, []).append(took)
                print(f"{NAMES[way]}: {took:.1f} s a minute", flush=True)
    slowest = statistics.median(seconds["transformers"])
    for way, took in seconds.items():
        middle, (text, windows) = statistics.median(took), texts[way]
        lines.append(
            f"| {NAMES[way]} | {middle:.2f} | {min(took):.2f} - {max(took):.2f} | {slowest / middle:.1f} "
            f"| {windows or ''} | {'yes' if text == texts['ours'][0] else 'no'} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
