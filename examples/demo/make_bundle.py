"""Make the demo's bundle: the base, and the target domain's audio with manifests.

    python examples/demo/train_base.py work/base
    python examples/demo/make_bundle.py work/base examples/demo/bundle

`--test 1000` makes the longer demo's test set, which is too large for the repository.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path

import numpy as np
import soundfile
import torch
from acoustics import BASE, TARGET, surround
from model import SECONDS
from sentences import LANGUAGES, draw, words
from voices import RATE, Voices

VARIANTS = ("m5", "m6", "m7", "f3", "f4", "f5")  # none of them was heard by the base
DISTURBED, REPLACED = 0.15, 0.7  # share of the words, and of those: replaced (the rest dropped)
BASE_FILES = ("*.json", "model.safetensors")


def make_split(
    output: Path, language: str, split: str, count: int, seed: int, *, clean: bool
) -> None:
    """Clips of one language as opus, and the manifests of both tasks; `easy` ones sound as the base knows it."""
    acoustics = BASE if split == "easy" else TARGET[language]
    name = f"{seed}/{language}/{split}"
    rng, voices = random.Random(name), voices_here()
    generator = torch.Generator().manual_seed(int.from_bytes(name.encode()[-7:], "big") + seed)
    folder = output / "audio" / language / split
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, object]]] = {"asr": [], "st": []}
    for number in range(count):
        sentence, variant = draw(language, rng), rng.choice(VARIANTS)
        speed, pitch = rng.randint(240, 310), rng.randint(10, 90)
        clip = voices.say(sentence.text, f"{language}+{variant}", speed, pitch)
        while len(clip) > SECONDS * RATE - 800:
            speed = int(speed * 1.1)
            clip = voices.say(sentence.text, f"{language}+{variant}", speed, pitch)
        wave = torch.zeros(1, min(len(clip) + 1600, SECONDS * RATE))
        wave[0, 800 : 800 + len(clip)] = torch.from_numpy(clip / np.abs(clip).max())
        heard = surround(wave[:, : wave.shape[1]], acoustics, generator)[0].numpy()
        audio = folder / f"{language}-{split}-{number:04d}.opus"
        soundfile.write(audio, heard, RATE, format="OGG", subtype="OPUS")
        for task, text, other in (("asr", sentence.text, language), ("st", sentence.english, "en")):
            written = disturb(text, other, rng) if split == "train" else text  # draws in any case
            rows[task].append({
                "id": f"{audio.stem}-{task}",
                "audio_filepath": audio.relative_to(output).as_posix(),
                "text": text if clean else written,
                "source_lang": language, "target_lang": other, "taskname": task,
                "duration": round(len(heard) / RATE, 4), "speaker": f"{language}-{variant}",
            })  # fmt: skip
    for task, lines in rows.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (output / f"{language}_{task}.{split}.jsonl").write_text(text, encoding="utf-8")


def disturb(text: str, language: str, rng: random.Random) -> str:
    """The slips of a careless transcriber: some words wrong, some missing."""
    kept = []
    for word in text.split():
        if rng.random() >= DISTURBED:
            kept.append(word)
        elif rng.random() < REPLACED:
            kept.append(rng.choice(words(language)))
    return " ".join(kept or text.split())


_speaking: list[Voices] = []


def voices_here() -> Voices:
    """The one synthesiser of this process."""
    if not _speaking:
        _speaking.append(Voices())
    return _speaking[0]


def copy_base(folder: Path, output: Path) -> None:
    """Copy what a model folder needs, and not what its training kept."""
    output.mkdir(exist_ok=True)
    for pattern in BASE_FILES:
        for file in folder.glob(pattern):
            shutil.copyfile(file, output / file.name)


def main() -> None:
    """Write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--train", type=int, default=200, help="clips per language")
    parser.add_argument("--dev", type=int, default=100)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument(
        "--easy", type=int, default=0, help="clips as the base knows them, to test with"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clean", action="store_true", help="no wrong words in training texts")
    arguments = parser.parse_args()
    if not (arguments.base / "model.safetensors").is_file():
        parser.error(f"{arguments.base} holds no model.safetensors")
    for language in LANGUAGES:
        for split in ("train", "dev", "test", "easy"):
            if count := getattr(arguments, split):
                make_split(
                    arguments.output, language, split, count, arguments.seed, clean=arguments.clean
                )
        print(language)
    copy_base(arguments.base, arguments.output / "base")


if __name__ == "__main__":
    main()
