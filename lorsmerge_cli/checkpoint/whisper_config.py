"""Checks that a folder has all files of a Whisper, and that its config.json fits the weights."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorsmerge_cli.checkpoint.model_files import CONFIG, companion_files, lacking
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.checkpoint.references import REFERENCE, explain_partial_cache
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UnreadableFile
from lorsmerge_cli.inputs import file_type, json_object, read_document, read_json
from lorsmerge_cli.quoting import command

WHISPERS_OWN = {"model.encoder.embed_positions.weight", "model.encoder.conv1.weight",
                "model.decoder.embed_positions.weight"}  # fmt: skip
# key of config.json -> tensor and axis of this size
SIZES = {
    "d_model": ("model.decoder.embed_tokens.weight", 1),
    "vocab_size": ("model.decoder.embed_tokens.weight", 0),
    "num_mel_bins": ("model.encoder.conv1.weight", 1),
    "max_source_positions": ("model.encoder.embed_positions.weight", 0),
    "max_target_positions": ("model.decoder.embed_positions.weight", 0),
    "encoder_ffn_dim": ("model.encoder.layers.0.fc1.weight", 0),
    "decoder_ffn_dim": ("model.decoder.layers.0.fc1.weight", 0),
}
# key of config.json -> OpenAI's name, for the sizes that no tensor's shape tells
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
    """Return the faults of a model's config, tokenizer and feature extractor.

    Args:
        folder: the folder with the config.
        processor: the folder with tokenizer and extractor, if it is another one.
        called: path or Hub id that the user gave; the folder by default.
        config_alone: do not check tokenizer and extractor; they are checked by default.
    """
    called = called or folder
    config = folder / CONFIG
    if not config.is_file():
        missing = UnreadableFile(
            f"{called} holds no config.json.",
            "Give a model folder, or with a bare file --config and the folder or Hub id of its base.",
        )
        return explain_partial_cache(called, [missing])
    try:
        kind = read_json(config).get("model_type")
    except (ValueError, AttributeError):
        return [UnreadableFile(f"{config} is no JSON config.", "Copy or download it again.")]
    if kind != "whisper":
        return [
            Mismatch(
                f"{called} is a {kind} model.",
                "finetune, eval, transcribe and export support Whisper only.",
            )
        ]
    place = processor or folder
    faults = [] if config_alone else lacking_processor(os.listdir(place), called, folder)
    return (
        explain_partial_cache(called, faults)
        + _irregular(folder)
        + (_irregular(place) if place != folder else [])
    )


def lacking_processor(names: Iterable[str], called: Path, folder: Path) -> list[LorsmergeError]:
    """Return a fault if the tokenizer is missing, and one if the feature extractor is.

    Args:
        names: the files of the model.
        called: path or Hub id that the user gave.
        folder: the folder with the config, which may name the model it was fine-tuned from.
    """
    line = command("--config", _made_from(folder))
    return [
        UnreadableFile(
            f"{called} holds no {what} ({' or '.join(files)}).",
            f"Add `{line}`, the model it was fine-tuned from, or copy the file from there "
            "(finetune has no --config).",
        )
        for what, files in lacking(names).items()
    ]


def _made_from(folder: Path) -> str | Path:
    """Return the model that a config names as its base if it is a folder or a Hub id; else BASE."""
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
    """Return a fault for each FIFO or device that transformers would read."""
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
    """Return the faults of another folder's config for a Whisper's weights; none for other models.

    Args:
        checkpoint: the weights; a file of OpenAI's also records the number of heads.
        folder: the folder with `config.json`.
    """
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError, UnreadableFile):
        return []  # reported elsewhere
    if not isinstance(config, dict) or config.get("model_type") != "whisper":
        return []
    return other_sizes(checkpoint, config, folder)


def other_sizes(
    checkpoint: Checkpoint, config: Mapping[str, Any], folder: Path
) -> list[LorsmergeError]:
    """Return a fault if a config's sizes differ from those of a Whisper's weights."""
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
            "Replace it by the config of the model it was trained from, or name that model with "
            "--config (eval, transcribe, search, merge).",
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
        facts[f"{part}_layers"] = sum(module == part for module, _ in layers)
    dims = checkpoint.dims
    return facts | {key: dims[theirs] for key, theirs in HEADS.items() if theirs in dims}
