"""What can be known to be wrong in a moment, before torch is loaded: names, numbers and paths."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorsmerge_cli.checkpoint.references import is_hub_id, no_such_path
from lorsmerge_cli.data.languages import parse_language, parse_task
from lorsmerge_cli.data.readers import manifest_splits
from lorsmerge_cli.errors import LorsmergeError, OutputFault, UsageFault, named
from lorsmerge_cli.inputs import json_object, read_document
from lorsmerge_cli.metrics.normalisation import AUTO, check_choice
from lorsmerge_cli.outputs import check_output, others_in
from lorsmerge_cli.speech.settings import LABEL_SPACES, SCHEDULES, TrainingSettings, full_dtype

DEVICES = ("auto", "cpu", "cuda", "mps")
STATE = "settings.json"
EPOCH_FILES = "epochs/[0-9]*.[0-9][0-9][0-9][0-9][0-9][0-9].safetensors"
TRAINING_FILES = (  # all that a run writes into its training folder
    STATE, EPOCH_FILES,
    "epochs/.[0-9]*.safetensors.*.partial/new/*.safetensors",
    *(f"checkpoint-[0-9]*/{name}" for name in (
        "model*.safetensors", "model.safetensors.index.json", "training_args.bin", "optimizer.pt",
        "scheduler.pt", "scaler.pt", "rng_state*.pth", "trainer_state.json", "*config.json",
        "tokenizer*", "vocab.json", "merges.txt", "normalizer.json", "special_tokens_map.json",
        "added_tokens.json",
    )),
)  # fmt: skip


def settings_of(*, dtype: str, **settings: Any) -> TrainingSettings:
    """Return settings by name; `dtype` may be spelled short (`bf16`).

    Raises:
        UsageFault: there is no such dtype.
    """
    return TrainingSettings(dtype=full_dtype(dtype), **settings)


def check_inputs(
    models: Iterable[Path],
    data: Iterable[Path],
    *,
    format: str | None = None,
    language: str | None = None,
    task: str | None = None,
    normalise: str = AUTO,
    dtype: str = "float32",
    device: str = "auto",
    numbers: Mapping[str, float | None] | None = None,
) -> list[LorsmergeError]:
    """Return the faults of what the commands that read speech have in common.

    Args:
        models: paths, or ids on the Hub, which are not asked for.
        data: data sets.
        format, language, task: of the data, as in `read_manifest`.
        normalise: one of `CHOICES`.
        dtype: the models compute in.
        device: as in `resolve_device`; whether it is there is not asked.
        numbers: option -> its value, which has to be finite; None where it was not given.
    """
    faults: list[LorsmergeError] = []
    faults += [no_such_path(p) for p in models if not p.exists() and not is_hub_id(p)]
    for path in dict.fromkeys(data):
        faults += _caught(manifest_splits, path, format)
    faults += _caught(parse_task, task) if task else []
    faults += _caught(parse_language, language) if language else []
    faults += _caught(full_dtype, dtype)
    if not re.fullmatch(r"auto|(cpu|cuda|mps)(:\d+)?", device):
        faults.append(UsageFault(f"--device {device} is not auto, cpu, cuda, cuda:N or mps."))
    faults += check_choice(normalise)
    for option, value in (numbers or {}).items():
        if value is not None and not math.isfinite(value):
            faults.append(UsageFault(f"{option} {value} is no finite number."))
    return faults


def check_audio(files: Iterable[Path]) -> list[LorsmergeError]:
    """Return a fault for each file whose header is not one of audio."""
    from lorsmerge_cli.data.audio import audio_seconds

    return [fault for path in files for fault in _caught(audio_seconds, path)]


def training_folder(output: Path) -> Path:
    """Return where the run of a fine-tune keeps its state."""
    return output.with_name(output.name + ".training")


def check_run(output: Path, *, resume: bool, force: bool) -> list[LorsmergeError]:
    """Return a fault where a run was interrupted and it is not said what to do with it.

    So is one where the folder of its state holds files that no run writes.
    """
    folder = training_folder(output)
    if not os.path.lexists(folder):
        return []
    others = others_in(folder, TRAINING_FILES)
    if folder.is_symlink() or not _is_a_run(folder):
        others = others or [folder.name]
    if others:
        return [
            OutputFault(
                f"{folder} is where the training keeps its state, and holds other files "
                f"({named(others)}).",
                "Move them away.",
            )
        ]
    if resume or force:
        return []
    return [
        OutputFault(
            f"{folder} holds a run that was interrupted.",
            "Resume it with --resume, or begin anew with --force.",
        )
    ]


def _is_a_run(folder: Path) -> bool:
    """Whether a folder's settings are those that a run writes when it begins."""
    try:
        return {"run", "before"} <= json_object(read_document(folder / STATE)).keys()
    except (OSError, ValueError, LorsmergeError):
        return not any(folder.iterdir()) if folder.is_dir() else False


def check_training_folder(output: Path, inputs: Iterable[Path]) -> list[LorsmergeError]:
    """Return a fault where an input or another output lies where a training keeps its state."""
    folder = training_folder(output).resolve()
    inside = [path for path in inputs if folder in (path.resolve(), *path.resolve().parents)]
    if not inside:
        return []
    return [
        OutputFault(
            f"{inside[0]} lies in {folder}, where the training keeps its state and clears it away.",
            "Move it, or write to another folder with -o.",
        )
    ]


def check_outputs(
    files: Iterable[Path | None],
    folders: Iterable[Path | None] = (),
    *,
    inputs: Sequence[Path],
    force: bool,
) -> list[LorsmergeError]:
    """Return what keeps outputs from being written, but for a disk that is too small."""
    wanted = [(path, False) for path in files if path] + [(path, True) for path in folders if path]
    return [
        fault
        for path, folder in wanted
        for fault in check_output(path, inputs=inputs, size=0, force=force, folder=folder)
    ]


def check_training(settings: TrainingSettings, device: str) -> list[LorsmergeError]:
    """Return what is wrong with the settings of a training, and with the device for it."""
    faults: list[LorsmergeError] = []
    for what, name, known in (
        ("schedule", settings.schedule, SCHEDULES),
        ("label space", settings.label_space, LABEL_SPACES),
    ):
        if name not in known:
            faults.append(UsageFault(f"There is no {what} {name!r}.", f"Use {', '.join(known)}."))
    rate = settings.learning_rate
    if not 0 < rate < 1:
        faults.append(UsageFault(f"A learning rate of {rate:g} is not between 0 and 1."))
    if not 0 < settings.epochs < math.inf:
        faults.append(
            UsageFault(
                f"--epochs {settings.epochs:g} is not a number of passes above 0.",
                "Give --epochs 1, say; to score a model as it is, use `lorsmerge eval`.",
            )
        )
    for option, value in (("--warmup", settings.warmup), ("--clip", settings.clip)):
        if not 0 <= value < math.inf:
            faults.append(UsageFault(f"{option} {value:g} is not a number from 0 on."))
    if device.startswith("cuda:"):
        faults.append(
            UsageFault(
                f"--device {device} is not for training.",
                f"Use CUDA_VISIBLE_DEVICES={device[5:]} with --device cuda; torchrun takes several.",
            )
        )
    elif device not in DEVICES:
        faults.append(UsageFault(f"There is no device {device!r}.", f"Use {', '.join(DEVICES)}."))
    # as torchrun and accelerate tell each process
    faults += _caught(settings.batches, int(os.environ.get("WORLD_SIZE", "1")))
    return faults


def _caught(check: Any, *arguments: Any) -> list[LorsmergeError]:
    try:
        check(*arguments)
    except LorsmergeError as fault:
        return [fault]
    return []
