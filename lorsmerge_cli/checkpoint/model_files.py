"""Which files a model consists of, in a folder or in a repository of the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from lorsmerge_cli.errors import NoSuchFile, UnreadableFile, named

Kind = Literal["any", "delta", "companions"]  # what is wanted of a folder or a repository

CONFIG, GENERATION = "config.json", "generation_config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
DELTA = ".delta"

# Whichever of these is there first is read, and with it what the other patterns match. The order
# is transformers': a single file that was saved over shards leaves their index behind.
WHOLE_MODELS = (
    (SINGLE_FILE,),
    (INDEX_FILE, "model-*-of-*.safetensors"),
    (PICKLED_FILE,),
    (PICKLED_INDEX, "pytorch_model-*-of-*.bin"),
)
ADAPTERS = tuple((name, ADAPTER_CONFIG) for name in ADAPTER_FILES)
# one of each is what a Whisper needs beside config and weights
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
EXTRACTOR_FILES = ("processor_config.json", "preprocessor_config.json")
TRAINER_CHECKPOINT = re.compile(r"checkpoint-\d+")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", DELTA)

# config, generation config, tokenizer and feature extractor, by the names transformers gives them,
# and the licence: what is downloaded, and what a folder that is written gets, beside weights
COMPANIONS = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "feature_extractor_config.json", "video_preprocessor_config.json", "audio_tokenizer_config.json",
    "tokenizer*.json", "tokenizer.model*", "tekken.json", "vocab.*", "vocab-*.json", "merges.txt",
    "bpe.codes", "added_tokens.json", "special_tokens_map.json", "normalizer.json", "spiece.model",
    "sentencepiece*.model", "spm*.model", "*.spm", "*.tiktoken", "chat_template.*",
    "additional_chat_templates/*.jinja", "LICEN[CS]E*", "licen[cs]e*", "NOTICE*", "COPYING*",
)  # fmt: skip


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter in place of a model."""
    models = (folder / patterns[0] for patterns in WHOLE_MODELS)
    # which of os.path say no where a folder may not be looked into
    return os.path.exists(folder / ADAPTER_CONFIG) and not any(map(os.path.isfile, models))


def weights_in(names: Iterable[str]) -> list[str]:
    """The files among `names` that stand for a whole model, the one that is read first."""
    there = set(names)
    return [patterns[0] for patterns in WHOLE_MODELS if patterns[0] in there]


def files_needed(
    names: Sequence[str], file: str | None, where: str, kind: Kind = "any"
) -> tuple[list[str], str | None]:
    """Return what of a repository is read.

    Args:
        names: all its files.
        file: the one that was asked for; None for the model, the adapter or the only delta.
        where: the repository, for messages.
        kind: `companions` for config, tokenizer and feature extractor alone, `delta` where nothing
            else will do.

    Returns:
        The files, and which of them stands for all; None where their folder does.

    Raises:
        UnreadableFile: no such file, no weights, or several deltas; a model where a delta is needed.
    """
    companions = companion_files(names)
    if kind == "companions":
        return companions, None
    files, single = _weights_needed(names, companions, file, where)
    if kind == "delta" and not (single and single.endswith(DELTA)):
        raise UnreadableFile(
            f"{where} is a model, and a delta is needed here.",
            f"`lorsmerge delta BASE {where} -o x.delta` makes one of a fine-tune.",
        )
    return files, single


def _weights_needed(
    names: Sequence[str], companions: list[str], file: str | None, where: str
) -> tuple[list[str], str | None]:
    weights = [name for name in names if name.endswith(WEIGHT_SUFFIXES)]
    if file is not None:
        if file not in names:
            there = f"It has {named(weights)}." if weights else "It has no weights at all."
            raise NoSuchFile(f"{where} has no file {file!r}.", there)
        return [file, *([] if file.endswith(DELTA) else companions)], file
    for patterns in (*WHOLE_MODELS, *ADAPTERS):
        if patterns[0] in names:
            found = _matching(names, patterns)
            return found if patterns in ADAPTERS else [*found, *companions], None
    deltas = [name for name in weights if name.endswith(DELTA)]
    if len(deltas) == 1:
        return deltas, deltas[0]
    what = f"none called {SINGLE_FILE}" if weights else "no weights that can be read"
    what = f"{len(deltas)} deltas" if deltas else what
    remedy = f"Name one of its files: {where}:{(deltas or weights)[0]}." if weights else ""
    fault = UnreadableFile if weights else NoSuchFile
    raise fault(
        f"{where} holds {what} (it has {named(weights or list(names))}).",
        remedy or "Give a repository with safetensors weights, or a delta.",
    )


def inherited_files(folder: Path) -> list[Path]:
    """What a Trainer's `checkpoint-N` leaves to the folder it lies in: tokenizer, feature extractor."""
    place = folder.resolve()
    if not TRAINER_CHECKPOINT.fullmatch(place.name):
        return []
    names = companion_files(sorted(file.name for file in place.parent.iterdir() if file.is_file()))
    return [place.parent / name for name in names if not (place / name).is_file()]


def processor_folder(folder: Path) -> Path:
    """The folder that holds a model folder's tokenizer and feature extractor.

    A Trainer's `checkpoint-N` often has the extractor alone, and the folder it lies in both.
    """
    place = folder.resolve()
    above = place.parent
    if not TRAINER_CHECKPOINT.fullmatch(place.name) or not lacking(os.listdir(place)):
        return folder
    return folder if lacking(os.listdir(above)) else above


def lacking(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return which of tokenizer and feature extractor are not among files -> files that would do."""
    there = set(names)
    needed = {"tokenizer": TOKENIZER_FILES, "feature extractor": EXTRACTOR_FILES}
    return {what: files for what, files in needed.items() if there.isdisjoint(files)}


def companion_files(names: Iterable[str]) -> list[str]:
    """Config, tokenizer, feature extractor and licence among a repository's files."""
    return _matching(names, COMPANIONS)


def _matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    return [
        name
        for name in names
        if any(
            fnmatchcase(name, pattern) and name.count("/") == pattern.count("/")
            for pattern in patterns
        )
    ]
