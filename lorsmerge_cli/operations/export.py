"""Export: a Whisper for other programs: OpenAI's own, and CTranslate2's (faster-whisper)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorsmerge_cli.checkpoint.model_writer import CONFIG
from lorsmerge_cli.checkpoint.openai_names import to_openai
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.checkpoint.safetensors_file import parse_dtype
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
from lorsmerge_cli.inputs import read_json
from lorsmerge_cli.outputs import (
    atomic_file,
    atomic_folder,
    check_output,
    check_unchanged,
    leftovers,
)
from lorsmerge_cli.speech.model import check_model_folder

WINDOW, VOCABULARIES = 1500, (51864, 51865, 51866)  # encoder positions, tokens: what OpenAI's have
CT2_TYPES = ("float32", "float16", "bfloat16", "int8", "int8_float32", "int8_float16",
             "int8_bfloat16", "int16")  # fmt: skip
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
        nbytes: of all its files.
        warnings: what the user should know.
    """

    output: Path
    format: str
    nbytes: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Model:
    """A checked Whisper folder."""

    path: Path
    folder: Path
    checkpoint: Checkpoint
    config: Mapping[str, Any]


def export(
    model: Path,
    output: Path,
    *,
    format: str,
    dtype: str | None = None,
    force: bool = False,
) -> ExportReport:
    """Write a Whisper in another program's format.

    Args:
        model: a model folder.
        output: a `.pt` file for `openai`, a folder for `ct2`.
        format: a name in FORMATS.
        dtype: of the written weights; None for the model's own.
        force: replace an output that exists.

    Raises:
        LorsmergeError: see the subclasses; nothing is written then.
    """
    if format not in FORMATS:
        raise UsageFault(f"There is no format {format!r}.", f"Use {' or '.join(FORMATS)}.")
    is_folder, check, write = FORMATS[format]
    found = _open(model)
    faults = check(found, output, dtype)
    size = sum(spec.nbytes for spec in found.checkpoint.specs.values())
    inputs = found.checkpoint.sources
    faults += check_output(output, inputs=inputs, size=size, force=force, folder=is_folder)
    raise_all(faults)
    warnings = (*_unlike_original(found, format), *leftovers(output))
    write(found, output, dtype, force)
    files = [path for path in output.rglob("*") if path.is_file()] if is_folder else [output]
    return ExportReport(output, format, sum(path.stat().st_size for path in files), warnings)


def _open(path: Path) -> _Model:
    checkpoint = Checkpoint(path)
    folder = checkpoint.folder
    if folder is None:
        raise UsageFault(
            f"{path} is a bare file, and its config and tokenizer are needed as well.",
            "Give a model folder: `merge -o folder/` writes one where the base is a folder.",
        )
    raise_all(check_model_folder(folder))
    return _Model(path, folder, checkpoint, read_json(folder / CONFIG))


def _unlike_original(model: _Model, format: str) -> list[str]:
    """A warning where the other program's `transcribe` takes for granted what does not hold."""
    window, vocabulary = model.config["max_source_positions"], model.config["vocab_size"]
    if window == WINDOW and vocabulary in VOCABULARIES:
        return []
    used = {"openai": "`model.encoder` and `model.decoder`", "ct2": "`ctranslate2.models.Whisper`"}
    return [
        f"{model.path} has {window} encoder positions and {vocabulary:,} tokens, unlike OpenAI's "
        f"Whispers ({WINDOW} and {VOCABULARIES[1]:,}): the network works ({used[format]}), but "
        "`transcribe` takes OpenAI's sizes for granted."
    ]


# openai-whisper: one pickle, {dims, model_state_dict}


def _check_openai(model: _Model, output: Path, dtype: str | None) -> list[LorsmergeError]:
    faults: list[LorsmergeError] = []
    config = model.config
    if output.suffix != ".pt":
        faults.append(UsageFault(f"{output}: openai-whisper's checkpoints are .pt files.",
                                 f"Write -o {output.with_suffix('.pt')}."))  # fmt: skip
    try:
        if dtype is not None and not parse_dtype(dtype).is_floating_point:
            faults.append(UsageFault(f"{dtype} is no float.", "Use float32 or float16."))
    except LorsmergeError as error:
        faults.append(error)
    wide = [f"{part}_ffn_dim" for part in ("encoder", "decoder")]
    odd = [f"{key} = {config.get(key)}" for key in wide if config.get(key) != 4 * config["d_model"]]
    if config.get("scale_embedding"):
        odd.append("scale_embedding = true")
    if config.get("activation_function", "gelu") != "gelu":
        odd.append(f"activation_function = {config['activation_function']}")
    if odd:
        faults.append(
            Mismatch(
                f"{model.path} is no Whisper as OpenAI's code builds it: {', '.join(odd)}.",
                "Export it with --format ct2.",
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
        with partial.open("wb") as file:  # whose errors are told, unlike torch's own
            torch.save(content, file)
        check_unchanged(model.checkpoint.identities)


# CTranslate2: a folder that faster_whisper.WhisperModel opens


def _check_ct2(model: _Model, output: Path, dtype: str | None) -> list[LorsmergeError]:
    faults: list[LorsmergeError] = []
    try:
        import ctranslate2  # noqa: F401
    except ImportError:
        faults.append(
            UsageFault(
                "--format ct2 needs CTranslate2, which is not installed.",
                "`pip install 'lorsmerge[ct2]'`, or `pip install ctranslate2`.",
            )
        )
    if dtype is not None and dtype not in CT2_TYPES:
        faults.append(UsageFault(f"CTranslate2 has no {dtype}.", f"Use {', '.join(CT2_TYPES)}."))
    if output.suffix in (".pt", ".bin", ".safetensors"):
        faults.append(UsageFault(f"{output}: a CTranslate2 model is a folder.",
                                 f"Write -o {output.with_suffix('')}/."))  # fmt: skip
    if not (model.folder / TOKENIZER).is_file():
        faults.append(
            Mismatch(
                f"{model.path} holds no {TOKENIZER}, which faster-whisper reads.",
                "Save its processor again with transformers: `WhisperProcessor.from_pretrained("
                f"'{model.path}').save_pretrained('{model.path}')`.",
            )
        )
    return faults


def _write_ct2(model: _Model, output: Path, dtype: str | None, force: bool) -> None:
    from ctranslate2.converters import TransformersConverter
    from transformers import WhisperProcessor
    from transformers.utils import logging

    for name in model.checkpoint.specs:
        if not is_finite(model.checkpoint.read(name)):
            raise non_finite(model.path, name)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with atomic_folder(output, force=force) as partial:
        converter = TransformersConverter(str(model.folder), copy_files=[TOKENIZER])
        converter.convert(str(partial), quantization=dtype, force=True)
        extractor = WhisperProcessor.from_pretrained(model.folder).feature_extractor
        extractor.to_json_file(partial / EXTRACTOR)
        check_unchanged(model.checkpoint.identities)


Check = Callable[[_Model, Path, str | None], list[LorsmergeError]]
Write = Callable[[_Model, Path, str | None, bool], None]
FORMATS: dict[str, tuple[bool, Check, Write]] = {  # name -> (is a folder, check, write)
    "ct2": (True, _check_ct2, _write_ct2),
    "openai": (False, _check_openai, _write_openai),
}
