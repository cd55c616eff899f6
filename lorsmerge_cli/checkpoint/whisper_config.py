"""Whether a folder has what a Whisper needs, and its config.json describes the weights."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorsmerge_cli.checkpoint.model_files import CONFIG, companion_files, lacking
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.checkpoint.references import REFERENCE, told_of_cache
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UnreadableFile
from lorsmerge_cli.inputs import file_type, json_object, read_document, read_json
from lorsmerge_cli.quoting import command

WHISPERS_OWN = {"model.encoder.embed_positions.weight", "model.encoder.conv1.weight",
                "model.decoder.embed_positions.weight"}  # fmt: skip
# key of config.json -> tensor and axis that have this size
SIZES = {
    "d_model": ("model.decoder.embed_tokens.weight", 1),
    "vocab_size": ("model.decoder.embed_tokens.weight", 0),
    "num_mel_bins": ("model.encoder.conv1.weight", 1),
    "max_source_positions": ("model.encoder.embed_positions.weight", 0),
    "max_target_positions": ("model.decoder.embed_positions.weight", 0),
    "encoder_ffn_dim": ("model.encoder.layers.0.fc1.weight", 0),
    "decoder_ffn_dim": ("model.decoder.layers.0.fc1.weight", 0),
}
# those that no tensor's shape tells, by OpenAI's names
HEADS = {"encoder_attention_heads": "n_audio_head", "decoder_attention_heads": "n_text_head"}
LONGEST_NAME = 200  # characters of a base's path or id in a message
LAYER = re.compile(r"model\.(encoder|decoder)\.layers\.(\d+)\.")


def check_model_folder(
    folder: Path,
    processor: Path | None = None,
    called: Path | None = None,
    *,
    config_alone: bool = False,
) -> list[LorsmergeError]:
    """What keeps a model's config, tokenizer and feature extractor from being used.

    Args:
        folder: with the config.
        processor: the folder with tokenizer and extractor, where it is another one.
        called: path or Hub id that the user gave; the folder by default.
        config_alone: tokenizer and extractor are not needed.
    """
    called = called or folder
    config = folder / CONFIG
    if not config.is_file():
        missing = UnreadableFile(
            f"{called} holds no config.json.",
            "Give a model folder, or with a bare file --config and the folder or Hub id of its base.",
        )
        return told_of_cache(called, [missing])
    try:
        kind = read_json(config).get("model_type")
    except (ValueError, AttributeError):
        return [UnreadableFile(f"{config} is no JSON config.", "Copy or download it again.")]
    if kind != "whisper":
        return [
            Mismatch(
                f"{called} is a {kind} model.",
                "finetune, eval, transcribe and export know Whisper.",
            )
        ]
    place = processor or folder
    faults = [] if config_alone else lacking_processor(os.listdir(place), called, folder)
    return (
        told_of_cache(called, faults)
        + _irregular(folder)
        + (_irregular(place) if place != folder else [])
    )


def lacking_processor(names: Iterable[str], called: Path, folder: Path) -> list[LorsmergeError]:
    """Return a fault for tokenizer and for feature extractor where there is none.

    Args:
        names: of the files that there are.
        called: what the user knows the model as.
        folder: with the config, which may say what the model was fine-tuned from.
    """
    line = command("--config", _made_from(folder))
    return [
        UnreadableFile(
            f"{called} holds no {what} ({' or '.join(files)}).",
            f"Add `{line}`, the model that it was fine-tuned from, or copy the file from there "
            "(finetune has no --config).",
        )
        for what, files in lacking(names).items()
    ]


def _made_from(folder: Path) -> str | Path:
    """What a config names as the model it was made from, where that can be had; else BASE."""
    try:
        name = json_object(read_document(folder / CONFIG)).get("_name_or_path")
    except (OSError, ValueError, LorsmergeError):
        name = None
    if not isinstance(name, str) or not name or len(name) > LONGEST_NAME:
        return "BASE"
    if os.path.isdir(name):
        return Path(name)
    return name if REFERENCE.fullmatch(name) else "BASE"


def _irregular(folder: Path) -> list[LorsmergeError]:
    """Return a fault for each file that transformers would read and that is a FIFO or a device."""
    faults: list[LorsmergeError] = []
    for name in companion_files(sorted(os.listdir(folder))):
        path = folder / name
        if os.path.exists(path) and not (path.is_file() or path.is_dir()):
            kind = file_type(path.stat().st_mode)
            faults.append(
                UnreadableFile(f"{path} is a {kind}, and a file is needed.", "Put the file there.")
            )
    return faults


def config_faults(checkpoint: Checkpoint, folder: Path) -> list[LorsmergeError]:
    """In what the config of another folder contradicts a Whisper's weights; nothing for other models.

    Args:
        checkpoint: weights of a file, which says itself how many heads it has if it is OpenAI's.
        folder: with `config.json`.
    """
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError, UnreadableFile):
        return []  # which others report
    if not isinstance(config, dict) or config.get("model_type") != "whisper":
        return []
    return other_sizes(checkpoint, config, folder)


def other_sizes(
    checkpoint: Checkpoint, config: Mapping[str, Any], folder: Path
) -> list[LorsmergeError]:
    """Return a fault where a config has other sizes than a Whisper's weights, by their headers."""
    facts = _facts(checkpoint)
    wrong = [
        f"{key} is {config[key]!r} and has to be {fact}"
        for key, fact in facts.items()
        if key in config and config[key] != fact
    ]
    if not wrong:
        return []
    return [
        Mismatch(
            f"{folder / 'config.json'} does not describe {checkpoint.path}: {', '.join(wrong)}.",
            "Put the config of the model that it was trained from in its place, or name that model "
            "with --config (eval, transcribe, search, merge).",
        )
    ]


def _facts(checkpoint: Checkpoint) -> Mapping[str, int]:
    specs = checkpoint.specs
    facts = {
        key: specs[name].shape[axis]
        for key, (name, axis) in SIZES.items()
        if name in specs and len(specs[name].shape) > axis
    }
    layers = {match.groups() for name in specs if (match := LAYER.match(name))}
    for part in ("encoder", "decoder"):
        facts[f"{part}_layers"] = sum(room == part for room, _ in layers)
    dims = checkpoint.dims
    return facts | {key: dims[theirs] for key, theirs in HEADS.items() if theirs in dims}
