"""Which files a model consists of, in a folder or in a repository of the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from lorsmerge_cli.errors import NoSuchFile, UnreadableFile, named

Kind = Literal["any", "delta", "companions"]  # which files of a folder or a repository are needed

CONFIG, GENERATION = "config.json", "generation_config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
DELTA = ".delta"

# The first that exists is read, with the files that its other patterns match. The order is
# transformers': a single file saved over shards leaves their index behind.
WHOLE_MODELS = (
    (SINGLE_FILE,),
    (INDEX_FILE, "model-*-of-*.safetensors"),
    (PICKLED_FILE,),
    (PICKLED_INDEX, "pytorch_model-*-of-*.bin"),
)
ADAPTERS = tuple((name, ADAPTER_CONFIG) for name in ADAPTER_FILES)
# a Whisper needs one of each beside config and weights
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
EXTRACTOR_FILES = ("processor_config.json", "preprocessor_config.json")
TRAINER_CHECKPOINT = re.compile(r"checkpoint-\d+")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", DELTA)

# config, generation config, tokenizer and feature extractor, by the names transformers gives them,
# and the licence: the files that are downloaded, and copied into output folders, beside weights
COMPANIONS = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "feature_extractor_config.json", "video_preprocessor_config.json", "audio_tokenizer_config.json",
    "tokenizer*.json", "tokenizer.model*", "tekken.json", "vocab.*", "vocab-*.json", "merges.txt",
    "bpe.codes", "added_tokens.json", "special_tokens_map.json", "normalizer.json", "spiece.model",
    "sentencepiece*.model", "spm*.model", "*.spm", "*.tiktoken", "chat_template.*",
    "additional_chat_templates/*.jinja", "LICEN[CS]E*", "licen[cs]e*", "NOTICE*", "COPYING*",
)  # fmt: skip


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds a PEFT adapter instead of a model."""
    models = (folder / patterns[0] for patterns in WHOLE_MODELS)
    # os.path's functions return False for a folder without permission
    return os.path.exists(folder / ADAPTER_CONFIG) and not any(map(os.path.isfile, models))


def weights_in(names: Iterable[str]) -> list[str]:
    """Return the names that stand for a whole model's weights, first the one that is read."""
    there = set(names)
    return [patterns[0] for patterns in WHOLE_MODELS if patterns[0] in there]


def files_needed(
    names: Sequence[str], file: str | None, where: str, kind: Kind = "any"
) -> tuple[list[str], str | None]:
    """Choose the files of a repository to read.

    Args:
        names: all its files.
        file: the requested one; None for the model, the adapter or the only delta.
        where: the repository, for messages.
        kind: `companions` for config, tokenizer and feature extractor alone, `delta` to accept
            nothing but a delta.

    Returns:
        The files, and the one to open; None to open their folder.

    Raises:
        UnreadableFile: no such file, no weights, several deltas, or a model instead of a delta.
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
    """List the files of its parent that a Trainer's `checkpoint-N` lacks, such as the tokenizer's."""
    place = folder.resolve()
    if not TRAINER_CHECKPOINT.fullmatch(place.name):
        return []
    names = companion_files(sorted(file.name for file in place.parent.iterdir() if file.is_file()))
    return [place.parent / name for name in names if not (place / name).is_file()]


def processor_folder(folder: Path) -> Path:
    """Return the folder that holds a model folder's tokenizer and feature extractor.

    A Trainer's `checkpoint-N` often has the extractor alone, and its parent both.
    """
    place = folder.resolve()
    above = place.parent
    if not TRAINER_CHECKPOINT.fullmatch(place.name) or not lacking(os.listdir(place)):
        return folder
    return folder if lacking(os.listdir(above)) else above


def lacking(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the missing ones of tokenizer and feature extractor -> file names that would do."""
    there = set(names)
    needed = {"tokenizer": TOKENIZER_FILES, "feature extractor": EXTRACTOR_FILES}
    return {what: files for what, files in needed.items() if there.isdisjoint(files)}


def companion_files(names: Iterable[str]) -> list[str]:
    """Return the config, tokenizer, feature extractor and licence files among `names`."""
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
