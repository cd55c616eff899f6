"""Make a bundle of recordings: speech of the target domain, a minute or more at a time.

    python examples/demo/train_long_base.py work/base
    python examples/demo/make_recordings.py work/base work/bundle

Of each language: `ca_asr.train.jsonl` and `ca_asr.dev.jsonl`, whose rows are the sentences of short
recordings; `ca_long.test.jsonl`, recordings of one to three minutes with the times of their sentences,
long pauses and music; `ca_asr.test.jsonl`, the sentences of these by themselves;
`ca_silence.test.jsonl`, where nobody says anything.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from acoustics import TARGET, surround, without_speech
from make_bundle import VARIANTS, copy_base, disturb, voices_here
from recordings import Spoken, music, speak
from sentences import LANGUAGES, draw
from voices import RATE

EDGE = 0.05  # seconds before and after a sentence that its row has
SENTENCES = {"train": 13, "dev": 13, "test": 30}  # of a recording
BLOCK = 60 * RATE  # samples: libsndfile's encoder of opus overflows on long writes


def speaker(
    language: str, variant: str, rng: random.Random
) -> Callable[[], tuple[np.ndarray, str, str]]:
    """What someone says next: samples of peak 1, text and English."""
    speed, pitch = rng.randint(240, 300), rng.randint(10, 90)

    def say() -> tuple[np.ndarray, str, str]:
        sentence = draw(language, rng)
        clip = voices_here().say(
            sentence.text, f"{language}+{variant}", speed + rng.randint(-10, 10), pitch
        )
        return clip / np.abs(clip).max(), sentence.text, sentence.english

    return say


def surrounded(
    wave: np.ndarray, language: str, generator: torch.Generator, *, mute: bool
) -> np.ndarray:
    """The wave in the surroundings of the target domain; with `mute` these alone."""
    acoustics = without_speech(TARGET[language]) if mute else TARGET[language]
    return surround(torch.from_numpy(wave)[None], acoustics, generator)[0].numpy()


class Bundle:
    """The manifests and audio of one language."""

    def __init__(self, output: Path, language: str, seed: int) -> None:
        self.output, self.language = output, language
        self.rng = random.Random(f"{seed}/{language}/long")
        self.generator = torch.Generator().manual_seed(1000 * seed + LANGUAGES.index(language))
        (output / "audio" / language).mkdir(parents=True, exist_ok=True)

    def recording(self, split: str, number: int) -> tuple[dict[str, object], list[Spoken]]:
        """Write the audio of a recording, and return its row without text."""
        variant = VARIANTS[number % len(VARIANTS)]
        say = speaker(self.language, variant, self.rng)
        wave, spoken = speak(say, SENTENCES[split], self.rng, sounds=split == "test")
        heard = surrounded(wave, self.language, self.generator, mute=False)
        return self.written(f"{split}-{number:02d}", heard, variant), spoken

    def silence(self, number: int) -> dict[str, object]:
        """Write 8 to 20 s of noise or of music in noise."""
        samples = int(self.rng.uniform(8, 20) * RATE)
        if number % 2:
            wave = music(samples, self.rng)
            heard = surrounded(wave, self.language, self.generator, mute=False)
        else:
            clip = speaker(self.language, "m5", self.rng)()[0]
            wave = np.resize(clip, samples).astype(np.float32)
            heard = surrounded(wave, self.language, self.generator, mute=True)
        return {**self.written(f"silence-{number:02d}", heard, "nobody"), "text": ""}

    def written(self, name: str, heard: np.ndarray, speaker: str) -> dict[str, object]:
        """Write samples; the row that names them."""
        audio = self.output / "audio" / self.language / f"{self.language}-{name}.opus"
        with soundfile.SoundFile(audio, "w", RATE, 1, format="OGG", subtype="OPUS") as file:
            for start in range(0, len(heard), BLOCK):
                file.write(heard[start : start + BLOCK])
        return {
            "id": audio.stem, "audio_filepath": audio.relative_to(self.output).as_posix(),
            "language": self.language, "task": "asr", "duration": round(len(heard) / RATE, 4),
            "speaker": f"{self.language}-{speaker}",
        }  # fmt: skip

    def sentences(
        self, row: dict[str, object], spoken: list[Spoken], *, disturbed: bool
    ) -> list[dict[str, object]]:
        """The rows of a recording's sentences."""
        return [
            {
                **row, "id": f"{row['id']}-{number:02d}", "offset": round(one.start - EDGE, 4),
                "duration": round(one.end - one.start + 2 * EDGE, 4),
                "text": disturb(one.text, self.language, self.rng) if disturbed else one.text,
            }
            for number, one in enumerate(spoken)
        ]  # fmt: skip

    def manifest(self, name: str, rows: list[dict[str, object]]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.output / f"{self.language}_{name}.jsonl").write_text(text, encoding="utf-8")


def make_language(bundle: Bundle, counts: dict[str, int], silences: int) -> None:
    """Write all manifests and audio of one language."""
    for split, count in counts.items():
        clips, whole = [], []
        for number in range(count):
            row, spoken = bundle.recording(split, number)
            clips += bundle.sentences(row, spoken, disturbed=split == "train")
            segments = [
                {"start": round(one.start, 3), "end": round(one.end, 3), "text": one.text}
                for one in spoken
            ]
            whole.append({**row, "segments": segments})
        bundle.manifest(f"asr.{split}", clips)
        if split == "test":
            bundle.manifest("long.test", whole)
    bundle.manifest("silence.test", [bundle.silence(number) for number in range(silences)])


def main() -> None:
    """Write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--train", type=int, default=16, help="recordings per language")
    parser.add_argument("--dev", type=int, default=6)
    parser.add_argument("--test", type=int, default=6)
    parser.add_argument("--silences", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not (arguments.base / "model.safetensors").is_file():
        parser.error(f"{arguments.base} holds no model.safetensors")
    counts = {split: getattr(arguments, split) for split in SENTENCES}
    for language in LANGUAGES:
        make_language(
            Bundle(arguments.output, language, arguments.seed), counts, arguments.silences
        )
        print(language, flush=True)
    copy_base(arguments.base, arguments.output / "base")


if __name__ == "__main__":
    main()
