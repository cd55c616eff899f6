"""Whether a Whisper's config.json describes the weights beside which it is to lie."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UnreadableFile
from lorsmerge_cli.inputs import read_json

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
LAYER = re.compile(r"model\.(encoder|decoder)\.layers\.(\d+)\.")


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
    facts = _facts(checkpoint)
    wrong = [
        f"{key} is {config[key]} and has to be {fact}"
        for key, fact in facts.items()
        if key in config and config[key] != fact
    ]
    if not wrong:
        return []
    return [
        Mismatch(
            f"{folder / 'config.json'} does not describe {checkpoint.path}: {', '.join(wrong)}.",
            "Give --config the folder or the Hub id of the model it was trained from.",
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
