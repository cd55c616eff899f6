"""Export: write a Whisper for OpenAI's whisper or for CTranslate2 (faster-whisper)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lorsmerge_cli.checkpoint.companions import find_companions, with_processor_of
from lorsmerge_cli.checkpoint.model_files import processor_folder
from lorsmerge_cli.checkpoint.openai_names import to_openai
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.checkpoint.references import local_path
from lorsmerge_cli.checkpoint.safetensors_file import parse_dtype
from lorsmerge_cli.checkpoint.whisper_config import check_model_folder, config_faults, other_sizes
from lorsmerge_cli.core.merging import is_finite
from lorsmerge_cli.errors import (
    LorsmergeError,
    Mismatch,
    NonFinite,
    UsageFault,
    named,
    non_finite,
    raise_all,
)
from lorsmerge_cli.inputs import FilePath, path_of
from lorsmerge_cli.outputs import (
    atomic_file,
    atomic_folder,
    check_output,
    check_unchanged,
    leftovers,
)
from lorsmerge_cli.quoting import python_command
from lorsmerge_cli.speech.ctranslate import check_installed, check_network, convert
from lorsmerge_cli.speech.loading import load_config, load_parts, refused
from lorsmerge_cli.usage import check_export

WINDOW, VOCABULARIES = 1500, (51864, 51865, 51866)  # encoder positions, tokens of OpenAI's models
TOKENIZER, EXTRACTOR = "tokenizer.json", "preprocessor_config.json"
DIMS = {  # OpenAI's name of a size -> transformers'
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size",
    "n_text_ctx": "max_target_positions",
    "n_text_state": "d_model",
    "n_text_head": "decoder_attention_heads",
    "n_text_layer": "decoder_layers",
}


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        output: the file or folder.
        format: a name in FORMATS.
        nbytes: size of all its files.
        warnings: what the user should know.
    """

    output: Path
    format: str
    nbytes: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Model:
    """A checked Whisper.

    Attributes:
        path: as given.
        checkpoint: its weights.
        config: its config.json.
        files: the files beside the weights, by name.
        extractor: its feature extractor; None if the format does not need it.
    """

    path: Path
    checkpoint: Checkpoint
    config: Mapping[str, Any]
    files: Mapping[str, Path]
    extractor: Any


def export(
    model: FilePath,
    output: FilePath,
    *,
    format: str,
    dtype: str | None = None,
    config_dir: FilePath | None = None,
    force: bool = False,
) -> ExportReport:
    """Write a Whisper in another program's format.

    Args:
        model: a model folder.
        output: a `.pt` file for `openai`, a folder for `ct2`.
        format: `openai` for openai-whisper, `ct2` for faster-whisper (needs ctranslate2).
        dtype: of the written weights, with `ct2` also `int8` and others; the model's own by default.
        config_dir: model whose tokenizer and feature extractor are used; by default the model's own
            or, for a Trainer's `checkpoint-N`, its parent's.
        force: replace an existing output.

    Raises:
        LorsmergeError: see the subclasses; nothing is written then.

    Example:
        >>> report = export("nano", "nano.pt", format="openai", dtype="float16")
        >>> report.output, report.nbytes == report.output.stat().st_size
        (PosixPath('nano.pt'), True)
    """
    model, output = Path(model), Path(output)
    faults = check_export(format, output, dtype)
    if format not in FORMATS:
        raise_all(faults)
    is_folder, check, write = FORMATS[format]
    found, unread = _open(model, path_of(config_dir), with_processor=is_folder)
    faults += unread + check(found)
    size = sum(spec.nbytes for spec in found.checkpoint.specs.values())
    inputs = found.checkpoint.sources
    faults += check_output(output, inputs=inputs, size=size, force=force, folder=is_folder)
    raise_all(faults)
    warnings = (*_unlike_original(found, format), *leftovers(output))
    write(found, output, dtype, force)
    files = [path for path in output.rglob("*") if path.is_file()] if is_folder else [output]
    return ExportReport(output, format, sum(path.stat().st_size for path in files), warnings)


def _open(
    path: Path, config_dir: Path | None, *, with_processor: bool
) -> tuple[_Model, list[LorsmergeError]]:
    """Open a model folder; return it with the faults that do not prevent further checks."""
    checkpoint = Checkpoint(path)
    folder = checkpoint.folder
    if folder is None:
        raise UsageFault(
            f"{path} is a bare file, and its config and tokenizer are needed as well.",
            "Give a model folder: `merge -o folder/` writes one where the base is a folder.",
        )
    base = local_path(config_dir, "companions") if config_dir else None
    processor = base or processor_folder(folder)
    called = config_dir or path
    faults = check_model_folder(folder, processor, called, config_alone=not with_processor)
    faults += config_faults(checkpoint, base) if base else []
    raise_all(faults)
    config = load_config(folder)
    faults = other_sizes(checkpoint, config.to_dict(), folder)
    found = _Model(path, checkpoint, config.to_dict(), {}, None)
    if not with_processor:
        return found, faults
    files = find_companions(folder)
    files = with_processor_of(files, find_companions(base)) if base else files
    faults += files.faults
    if TOKENIZER not in files.files:
        faults.append(_no_fast_tokenizer(processor))
    if faults:
        return found, faults
    parts = load_parts(config, folder, processor)
    return replace(found, files=files.files, extractor=parts.processor.feature_extractor), []


def _no_fast_tokenizer(processor: Path) -> Mismatch:
    line = python_command(
        "from transformers import WhisperProcessor as W; "
        f"W.from_pretrained({str(processor)!r}).save_pretrained('processor')"
    )
    return Mismatch(
        f"{processor} holds no {TOKENIZER}, which faster-whisper reads.",
        f"Make one: `{line}`, and export with --config processor.",
    )


def _unlike_original(model: _Model, format: str) -> list[str]:
    """Return a warning if the model's sizes do not suit the other program's `transcribe`."""
    window, vocabulary = model.config["max_source_positions"], model.config["vocab_size"]
    if window == WINDOW and vocabulary in VOCABULARIES:
        return []
    used = {"openai": "`model.encoder` and `model.decoder`", "ct2": "`ctranslate2.models.Whisper`"}
    return [
        f"{model.path} has {window} encoder positions and {vocabulary:,} tokens, unlike OpenAI's "
        f"Whispers ({WINDOW} and {VOCABULARIES[1]:,}): the network works ({used[format]}), but "
        "`transcribe` assumes OpenAI's sizes."
    ]


# openai-whisper: one pickle, {dims, model_state_dict}


def _check_openai(model: _Model) -> list[LorsmergeError]:
    faults: list[LorsmergeError] = []
    config = model.config
    wide = [f"{part}_ffn_dim" for part in ("encoder", "decoder")]
    odd = [f"{key} = {config.get(key)}" for key in wide if config.get(key) != 4 * config["d_model"]]
    if config.get("scale_embedding"):
        odd.append("scale_embedding = true")
    if config.get("activation_function", "gelu") != "gelu":
        odd.append(f"activation_function = {config['activation_function']}")
    if odd:
        faults.append(
            Mismatch(
                f"{model.path} is not a Whisper that OpenAI's code can build: {', '.join(odd)}.",
                "" if check_network("", config) else "Export it with --format ct2.",
            )
        )
    extra = [name for name in model.checkpoint.specs if not name.startswith("model.")]
    if extra:
        faults.append(
            Mismatch(f"{model.path} holds tensors that OpenAI's Whisper lacks: {named(extra)}.")
        )
    return faults


def _write_openai(model: _Model, output: Path, dtype: str | None, force: bool) -> None:
    target = parse_dtype(dtype) if dtype else None
    state = {}
    for name, spec in model.checkpoint.specs.items():
        value = model.checkpoint.read(name)
        if not is_finite(value):
            raise non_finite(model.path, name)
        wanted = target if target is not None and spec.is_float else spec.dtype
        state[to_openai(name)] = value.to(wanted).clone()
        if not is_finite(state[to_openai(name)]):
            raise NonFinite(f"{model.path}: {name!r} overflows {dtype}.", "Use --dtype float32.")
    content = {
        "dims": {theirs: int(model.config[ours]) for theirs, ours in DIMS.items()},
        "model_state_dict": state,
    }
    with atomic_file(output, force=force) as partial:
        with partial.open("wb") as file:  # raises OSError for a full disk, unlike torch
            torch.save(content, file)
        check_unchanged(model.checkpoint.identities)


# CTranslate2: a folder that faster_whisper.WhisperModel opens


def _check_ct2(model: _Model) -> list[LorsmergeError]:
    return check_installed("--format ct2") + check_network(str(model.path), model.config)


def _write_ct2(model: _Model, output: Path, dtype: str | None, force: bool) -> None:
    for name in model.checkpoint.specs:
        if not is_finite(model.checkpoint.read(name)):
            raise non_finite(model.path, name)
    weights = {path.name: path for path in model.checkpoint.identities}
    with atomic_folder(output, force=force) as partial, TemporaryDirectory() as name:
        whole = Path(name)
        for file, path in {**model.files, **weights}.items():
            (whole / file).parent.mkdir(exist_ok=True)
            (whole / file).symlink_to(path.resolve())
        with refused(model.path):
            convert(whole, partial, dtype, copied=[TOKENIZER])
        model.extractor.to_json_file(partial / EXTRACTOR)
        check_unchanged(model.checkpoint.identities)


Check = Callable[[_Model], list[LorsmergeError]]
Write = Callable[[_Model, Path, str | None, bool], None]
FORMATS: dict[str, tuple[bool, Check, Write]] = {  # name -> (is a folder, check, write)
    "ct2": (True, _check_ct2, _write_ct2),
    "openai": (False, _check_openai, _write_openai),
}
