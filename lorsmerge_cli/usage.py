"""Checks of names, numbers and paths that take a moment, before torch is loaded."""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lorsmerge_cli.checkpoint.modules import EXTENTS
from lorsmerge_cli.checkpoint.references import is_hub_id, no_such_path
from lorsmerge_cli.core.methods import default_scale, find_method, method_faults, method_of
from lorsmerge_cli.data.hours import Given, parse_hours
from lorsmerge_cli.data.languages import parse_language, parse_task
from lorsmerge_cli.data.readers import manifest_splits
from lorsmerge_cli.data.streaming import Data, as_first_hours
from lorsmerge_cli.errors import (
    Faults,
    LorsmergeError,
    OutputFault,
    UnreadableFile,
    UsageFault,
    named,
    raise_all,
)
from lorsmerge_cli.inputs import FilePath, json_object, read_document, several
from lorsmerge_cli.metrics.normalisation import AUTO, check_choice
from lorsmerge_cli.outputs import check_output, others_in
from lorsmerge_cli.quoting import command
from lorsmerge_cli.results.beginning import check_hypotheses_begin, check_journal
from lorsmerge_cli.speech.engines import DEFAULT, check_engine
from lorsmerge_cli.speech.masks import parse_masks
from lorsmerge_cli.speech.settings import (
    DTYPES,
    LABEL_SPACES,
    REPORTERS,
    SCHEDULES,
    TrainingSettings,
    full_dtype,
)

DEVICES = ("auto", "cpu", "cuda", "mps")
STATE = "settings.json"
SKIPPED, LOSSES = "skipped.jsonl", "losses.jsonl"
WEIGHT_SUFFIXES = (".delta", ".bin", ".pt", ".pth", ".ckpt")  # not those of a merged model
CT2_TYPES = ("float32", "float16", "bfloat16", "int8", "int8_float32", "int8_float16",
             "int8_bfloat16", "int16")  # fmt: skip
EXPORTS = ("ct2", "openai")
MANIFESTS = (".jsonl", ".json", ".ndjson")
KINDS, LABELS = ("gram", "fisher", "both"), ("own", "data")  # of statistics, and what they need
RESULTS = "Give files that `lorsmerge eval -o results.json` wrote."
PAPER = "examples/paper/paper.toml shows how they are written."
EPOCH_FILES = "epochs/[0-9]*.[0-9][0-9][0-9][0-9][0-9][0-9].safetensors"
TRAINING_FILES = (  # all files that a run writes into its training folder
    STATE, SKIPPED, LOSSES, EPOCH_FILES,
    "epochs/.[0-9]*.safetensors.*.partial/new/*.safetensors",
    *(f"checkpoint-[0-9]*/{name}" for name in (
        "model*.safetensors", "model.safetensors.index.json", "training_args.bin", "optimizer.pt",
        "scheduler.pt", "scaler.pt", "rng_state*.pth", "trainer_state.json", "*config.json",
        "tokenizer*", "vocab.json", "merges.txt", "normalizer.json", "special_tokens_map.json",
        "added_tokens.json",
    )),
)  # fmt: skip


def settings_of(*, dtype: str, **settings: Any) -> TrainingSettings:
    """Return training settings, with a dtype that may be abbreviated (`bf16`).

    Args:
        dtype: a name in `DTYPES` or its abbreviation.
        **settings: the other fields of `TrainingSettings`.

    Raises:
        UsageFault: the dtype is unknown.

    Example:
        >>> settings_of(dtype="bf16").dtype
        'bfloat16'
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
    engine: str = DEFAULT,
    dtype: str = "float32",
    device: str = "auto",
    hours: Given = None,
    numbers: Mapping[str, float | None] | None = None,
) -> list[LorsmergeError]:
    """Return the faults of the arguments that all commands with speech data have.

    Args:
        models: paths, or Hub ids, which are not looked up.
        data: data sets.
        format: of the data, as in `read_manifest`.
        language: of the data, as in `read_manifest`.
        task: of the data, as in `read_manifest`.
        normalise: one of `CHOICES`.
        engine: that computes, a name in `ENGINES`.
        dtype: that the models compute in.
        device: as in `resolve_device`; whether it exists is not checked.
        hours: as in `parse_hours`.
        numbers: option -> its value, which must be finite; None if it was not given.
    """
    faults = check_paths(models)
    for path in dict.fromkeys(data):
        faults += _caught(manifest_splits, path, format)
    faults += check_labels(task or "", language or "")
    faults += check_engine(engine, dtype, device) + check_device(device)
    faults += check_choice(normalise)
    faults += _caught(parse_hours, hours)
    for option, value in (numbers or {}).items():
        if value is not None and not math.isfinite(value):
            faults.append(UsageFault(f"{option} {value} is not a finite number."))
    return faults


def check_paths(paths: Iterable[Path | None]) -> list[LorsmergeError]:
    """Return a fault for each path that neither exists nor has the form of a Hub id."""
    given = dict.fromkeys(path for path in paths if path is not None)
    return [no_such_path(path) for path in given if not path.exists() and not is_hub_id(path)]


def check_together(paths: Iterable[Path | None]) -> list[LorsmergeError]:
    """Return the faults of `check_paths`, or none if there is a Hub id among the paths.

    Hub ids are looked up later, and all faults are reported at once then.
    """
    given = [path for path in paths if path is not None]
    return [] if any(map(is_hub_id, given)) else check_paths(given)


def check_files(paths: Iterable[Path | None]) -> list[LorsmergeError]:
    """Return a fault for each path that does not exist, even if it has the form of a Hub id."""
    return [
        UnreadableFile(f"{path}: {os.strerror(errno.ENOENT)}.", "Check the path.")
        for path in dict.fromkeys(paths)
        if path is not None and not path.exists()
    ]


def check_statistics(kind: str, labels: str, half: str) -> list[LorsmergeError]:
    """Return the faults of the choices of `stats`."""
    faults: list[LorsmergeError] = []
    choices = (("--kind", kind, KINDS), ("--labels", labels, LABELS), ("--half", half, EXTENTS))
    for option, value, known in choices:
        if value not in known:
            faults.append(UsageFault(f"{option} {value!r} is unknown.", f"Use {', '.join(known)}."))
    return faults


def check_push(source: Path, results: Iterable[Path]) -> list[LorsmergeError]:
    """Return a fault for a model to be pushed and for each of its results, if they do not exist."""
    faults = check_files(results)
    if not source.exists():
        faults.append(UnreadableFile(f"{source}: no such file or folder.", "Check the path."))
    return faults


def check_report(results: Iterable[Path], paper: Path | None) -> list[LorsmergeError]:
    """Return a fault for each results file, and for the published numbers, that do not exist."""
    gone = os.strerror(errno.ENOENT)
    faults: list[LorsmergeError] = [
        UnreadableFile(f"{path} cannot be read ({gone}).", RESULTS)
        for path in results
        if not path.exists()
    ]
    if paper is not None and not paper.exists():
        faults.append(UnreadableFile(f"{paper} holds no published numbers ({gone}).", PAPER))
    return faults


def check_device(device: str) -> list[LorsmergeError]:
    """Return a fault if a name is not one of a device; whether it exists is not checked."""
    if re.fullmatch(r"auto|(cpu|cuda|mps)(:\d+)?", device):
        return []
    return [UsageFault(f"--device {device} is not auto, cpu, cuda, cuda:N or mps.")]


def check_stored_dtype(dtype: str | None) -> list[LorsmergeError]:
    """Return a fault if no output is written in a dtype."""
    if dtype is None or dtype in DTYPES:
        return []
    return [UsageFault(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")]


def check_labels(task: str, language: str) -> list[LorsmergeError]:
    """Return the faults of a task and a language; an empty string stands for none."""
    faults = _caught(parse_task, task) if task else []
    return faults + (_caught(parse_language, language) if language else [])


def check_weights_path(output: Path) -> list[LorsmergeError]:
    """Return a fault if a merge's output has the suffix of another type of weight file."""
    if output.suffix not in WEIGHT_SUFFIXES:
        return []
    return [
        OutputFault(
            f"{output}: a merged model is written as .safetensors or as a folder.",
            f"Write {command('-o', output.with_suffix('.safetensors'))} or "
            f"{command('-o', output.with_suffix(''))}/.",
        )
    ]


def check_step_norm(norm: float | None, other: Path | None) -> list[LorsmergeError]:
    """Return the faults of the options that set the length of a merge's step."""
    if norm is not None and other is not None:
        return [UsageFault("Both --step-norm and --step-norm-of are given.", "Give one of them.")]
    if norm is not None and not 0 < norm < math.inf:
        what = f"--step-norm {norm:g} is not a positive number."
        return [UsageFault(what, "Give the norm of a step, as `merge` prints it.")]
    if other is not None and not other.exists() and not is_hub_id(other):
        return [no_such_path(other)]
    return []


def check_merge(
    base: Path,
    deltas: Iterable[Path],
    output: Path | None,
    *,
    stats: Iterable[Path] = (),
    config_dir: Path | None,
    save_recipe: Path | None,
    dtype: str | None,
    device: str,
    force: bool,
) -> list[LorsmergeError]:
    """Return the faults of a merge's paths and choices.

    The files of an output folder that `force` replaces are not checked here: that reads all of them.
    """
    inputs = [base, *deltas, *stats]
    faults = (
        check_together([*inputs, config_dir]) + check_stored_dtype(dtype) + check_device(device)
    )
    if output is None and base.exists():
        output = Path("merged" if base.is_dir() or config_dir else "merged.safetensors")
    wrong = check_weights_path(output) if output is not None else []
    if output is None or wrong:
        return faults + wrong
    if output.suffix.lower() == ".safetensors":
        faults += check_outputs([output], inputs=inputs, force=force)
    elif not force:
        faults += check_outputs([], [output], inputs=inputs, force=False)
    return faults + check_outputs([save_recipe], inputs=[*inputs, output], force=force)


def check_export(format: str, output: Path, dtype: str | None) -> list[LorsmergeError]:
    """Return the faults of an export's format, dtype and name."""
    if format not in EXPORTS:
        return [UsageFault(f"There is no format {format!r}.", f"Use {' or '.join(EXPORTS)}.")]
    faults: list[LorsmergeError] = []
    if format == "openai":
        faults += check_stored_dtype(dtype)
        if output.suffix != ".pt":
            faults.append(UsageFault(f"{output}: openai-whisper's checkpoints are .pt files.",
                                     f"Write {command('-o', output.with_suffix('.pt'))}."))  # fmt: skip
        return faults
    if dtype is not None and dtype not in CT2_TYPES:
        faults.append(UsageFault(f"CTranslate2 has no {dtype}.", f"Use {', '.join(CT2_TYPES)}."))
    if output.suffix in (".pt", ".bin", ".safetensors"):
        faults.append(UsageFault(f"{output}: a CTranslate2 model is a folder.",
                                 f"Write {command('-o', output.with_suffix(''))}/."))  # fmt: skip
    return faults


Named = Mapping[str, FilePath] | Sequence[FilePath] | FilePath  # models or data sets of `evaluate`


def named_paths(given: Named) -> list[tuple[str, Path]]:
    """Return a name and a path for each model or data set.

    The name of a bare path is its last part if no other path has the same, otherwise all of it.

    Args:
        given: name -> path, or paths, each alone or as `NAME=PATH`.

    Example:
        >>> [name for name, _ in named_paths(["lors=out/merged", "ft/ca", "ft/de", "other/de"])]
        ['lors', 'ca', 'ft/de', 'other/de']
    """
    if isinstance(given, Mapping):
        return [(name, Path(path)) for name, path in given.items()]
    split = []
    for text in map(str, several(given)):
        name, equals, path = text.partition("=")
        has_name = bool(equals) and not text.startswith("hub:") and not Path(text).exists()
        split.append((name, Path(path)) if has_name else ("", Path(text)))
    last = [name or path.name or path.resolve().name for name, path in split]
    return [
        (name or (short if last.count(short) == 1 else str(path)), path)
        for (name, path), short in zip(split, last, strict=True)
    ]


def named_models(
    given: Named,
    deltas: Sequence[Path],
    method: str | None,
    scale: float | None,
    coef: Sequence[str] = (),
) -> list[tuple[str, Path]]:
    """Return name and path of each model; the name includes the deltas applied to it, and how."""
    method = method or method_of(())
    scale = default_scale(method) if scale is None else scale
    method = method if method_faults(method) else find_method(method).spec
    stems = "+".join(delta.stem for delta in deltas)
    update = stems if method == method_of(()) else f"{method}({stems})"
    added = f"+{','.join((f'{update}@{scale or 0:g}', *coef))}" if deltas else ""
    return [(name + added, path) for name, path in named_paths(given)]


Taught = tuple[str, str]  # language and task, each empty where a teacher is for all


def named_teachers(given: Named) -> dict[Taught, Path]:
    """Return the teacher of each language and task.

    Args:
        given: `LANGUAGE`, `LANGUAGE_TASK` or an empty string -> model, or models, each alone or as
            `LANGUAGE=MODEL`; one alone is for all that have none of their own.

    Returns:
        Language and task -> model. The task is empty for both tasks of a language, and the
        language too for every one.

    Raises:
        UsageFault: a language or task that is unknown, or two teachers for the same.

    Example:
        >>> named_teachers(["ca=ft/ca", "de_st=ft/de", "base"])[("de", "st")].as_posix()
        'ft/de'
    """
    if isinstance(given, Mapping):
        pairs = [(name, str(path)) for name, path in given.items()]
    else:
        split = ((text, *text.partition("=")) for text in map(str, several(given)))
        pairs = [
            (name, path) if equals and not Path(text).exists() else ("", text)
            for text, name, equals, path in split
        ]
    found: dict[Taught, Path] = {}
    faults: list[LorsmergeError] = []
    for name, path in pairs:
        option = f"--teacher {name}={path}" if name else f"--teacher {path}"
        try:
            key = _taught(name)
        except UsageFault as fault:
            hint = f"{fault.remedy} Write LANGUAGE=MODEL or LANGUAGE_TASK=MODEL.".strip()
            faults.append(UsageFault(f"{option}: {fault.what}", hint))
            continue
        if not path:
            faults.append(UsageFault(f"{option} names no model.", "Write LANGUAGE=MODEL."))
        elif key in found:
            faults.append(
                UsageFault(
                    f"{taught_in_words(key)} {'have' if key == ('', '') else 'has'} two teachers, "
                    f"{found[key]} and {path}.",
                    "Give --teacher once for each language, or for each language and task.",
                )
            )
        else:
            found[key] = Path(path)
    raise_all(faults)
    return found


def _taught(name: str) -> Taught:
    """Return language and task of `ca`, `ca_st` or an empty string."""
    if not name:
        return "", ""
    language, _, task = name.rpartition("_")
    if language and not _caught(parse_task, task):  # not the region of ca_es
        return parse_language(language), parse_task(task)
    return parse_language(name), ""


def taught_in_words(key: Taught) -> str:
    """Return what a teacher is for: `ca st`, `ca`, or `all others`."""
    return " ".join(filter(None, key)) or "all others"


def named_data(given: Named) -> list[tuple[str, Path]]:
    """Return name and path of each data set.

    Raises:
        UsageFault: one is given twice.
    """
    named = named_paths(given)
    if twice := [path for n, (name, path) in enumerate(named) if (name, path) in named[:n]]:
        raise UsageFault(f"--data {twice[0]} is given twice.")
    return named


def streamed(
    data: Sequence[Data] | None, hours: Given, streaming: bool, *, needed: bool = True
) -> list[Data]:
    """Return the data sets of a command, with `streaming` as `as_first_hours` does."""
    given = list(data or ())
    return as_first_hours(given, hours, needed=needed) if streaming else given


def check_applied(
    models: Sequence[object], deltas: Sequence[Path], settings: Mapping[str, object]
) -> list[LorsmergeError]:
    """Return the faults of applying deltas to a model.

    Args:
        models: one, if there are deltas.
        deltas: to be applied.
        settings: option that needs deltas -> its value, None if it was not given.
    """
    faults: list[LorsmergeError] = []
    if deltas and len(models) > 1:
        faults.append(UsageFault("--apply takes one MODEL, the base of the deltas."))
    for option, value in settings.items():
        if value is not None and not deltas:
            faults.append(UsageFault(f"{option} needs --apply.", "Give a DELTA with --apply."))
    return faults


def parse_shard(text: str | None) -> tuple[int, int]:
    """Return I and N of `I/N`; of None, 1 and 1: the whole.

    Raises:
        UsageFault: no such pair.

    Example:
        >>> parse_shard("2/8")
        (2, 8)
    """
    first, slash, of = (text or "1/1").partition("/")
    if slash and first.isdecimal() and of.isdecimal() and 1 <= int(first) <= int(of):
        return int(first), int(of)
    raise UsageFault(f"--shard {text} is no part of a whole.", "Write 1/4 to 4/4 for four parts.")


def check_names(names: Sequence[str], compared: tuple[str, str] | None) -> list[LorsmergeError]:
    """Return the faults of the models' names, and of the two that are compared."""
    faults: list[LorsmergeError] = []
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        faults.append(UsageFault(f"Two models are called {twice[0]!r}.", "Give NAME=PATH."))
    if compared is not None and compared[0] == compared[1]:
        faults.append(UsageFault(f"--compare {compared[0]} with itself.", "Name two models."))
    for name in compared or ():
        if name not in names:
            faults.append(
                UsageFault(f"--compare names no model {name!r}.", f"There are: {', '.join(names)}.")
            )
    return faults


def check_evaluation(
    names: Sequence[str],
    inputs: Sequence[Path],
    *,
    compared: tuple[str, str] | None,
    hypotheses: Path | None,
    score_only: bool,
    output: Path | None,
    trn: Path | None,
    force: bool,
) -> list[LorsmergeError]:
    """Return the faults of the outputs of eval, and of its models' names without `score_only`."""
    faults = check_outputs([output], inputs=inputs, force=force)
    if score_only:
        faults += check_files(inputs)
    else:
        faults += check_names(names, compared)
        faults += [] if hypotheses is None else check_hypotheses(hypotheses, inputs)
    return faults + ([] if trn is None else check_trn(trn, inputs, force=force))


def check_hypotheses(path: Path, inputs: Iterable[Path]) -> list[LorsmergeError]:
    """Return a fault if hypotheses cannot be appended to a file: an input, or of another type."""
    faults = check_output(path, inputs=inputs, size=0, force=True)
    return faults or (check_hypotheses_begin(path) if path.is_file() else [])


def label_files(output: Path) -> tuple[Path, Path]:
    """Return what lies beside a manifest of pseudo-labels: the journal, and the record of its making.

    Example:
        >>> [path.as_posix() for path in label_files(Path("out/pseudo.jsonl"))]
        ['out/pseudo.jsonl.journal', 'out/pseudo.jsonl.run.json']
    """
    return output.with_name(f"{output.name}.journal"), output.with_name(f"{output.name}.run.json")


def check_labelling(
    output: Path,
    teachers: Named,
    inputs: Sequence[Path],
    *,
    min_confidence: float | None,
    force: bool,
) -> list[LorsmergeError]:
    """Return the faults of the outputs and numbers of pseudo-labels, and of the teachers' names.

    Args:
        output: the manifest.
        teachers: as in `named_teachers`.
        inputs: data sets; those of the teachers are added.
        min_confidence: of a label.
        force: replace outputs that exist.
    """
    faults = _caught(named_teachers, teachers)
    models = [] if faults else list(dict.fromkeys(named_teachers(teachers).values()))
    faults += check_paths(models)
    if output.suffix not in MANIFESTS:
        faults.append(
            UsageFault(
                f"{output} is to be a manifest of JSON lines.",
                f"Write {command('-o', output.with_name(f'{output.name}.jsonl'))}.",
            )
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # torchrun sets it
        faults.append(
            UsageFault(
                "A data set is transcribed by one process.",
                "Start it without torchrun, and once for each GPU with another -o and its share of the "
                "--data.",
            )
        )
    if min_confidence is not None and not min_confidence <= 0:
        share = math.log(min_confidence) if 0 < min_confidence < 1 else -0.5
        faults.append(
            UsageFault(
                f"--min-confidence {min_confidence:g} is not at most 0: it is the mean logarithm of a "
                "token's probability.",
                f"Give {share:.2g} for a probability of {math.exp(share):.2g}.",
            )
        )
    journal, record = label_files(output)
    read = [*inputs, *models]
    faults += check_outputs([output, record], inputs=read, force=force)
    inside = check_outputs([journal], inputs=read, force=True)
    return faults + (inside or check_journal(journal))


def check_trn(folder: Path, inputs: Iterable[Path], *, force: bool) -> list[LorsmergeError]:
    """Return a fault if a folder already holds transcripts for sclite."""
    files = sorted(folder.glob("*.trn")) if folder.is_dir() else []
    if files and not force:
        return [OutputFault(f"{files[0]} exists.", "Give --force, or another --trn folder.")]
    return [
        fault for path in files for fault in check_output(path, inputs=inputs, size=0, force=force)
    ]


def check_audio(files: Iterable[Path]) -> list[LorsmergeError]:
    """Return a fault for each file without an audio header."""
    from lorsmerge_cli.data.audio import audio_seconds
    from lorsmerge_cli.data.audio_source import AudioFile

    return [fault for path in files for fault in _caught(audio_seconds, AudioFile(path))]


def training_folder(output: Path) -> Path:
    """Return the folder where the training of a model keeps its state.

    Example:
        >>> training_folder(Path("ft/ca")).as_posix()
        'ft/ca.training'
    """
    return output.with_name(output.name + ".training")


def check_run(output: Path, *, resume: bool, force: bool) -> list[LorsmergeError]:
    """Return a fault if an interrupted run exists, and neither `resume` nor `force` is given.

    Files in its training folder that no run writes are a fault too.
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
            "Resume it with --resume, or start again with --force.",
        )
    ]


def _is_a_run(folder: Path) -> bool:
    """Tell whether a folder is empty or holds the settings that a run writes when it begins."""
    try:
        return {"run", "before"} <= json_object(read_document(folder / STATE)).keys()
    except (OSError, ValueError, LorsmergeError):
        return not any(folder.iterdir()) if folder.is_dir() else False


def check_training_folder(output: Path, inputs: Iterable[Path]) -> list[LorsmergeError]:
    """Return a fault if an input or another output lies in the folder of a training's state."""
    folder = training_folder(output).resolve()
    inside = [path for path in inputs if folder in (path.resolve(), *path.resolve().parents)]
    if not inside:
        return []
    return [
        OutputFault(
            f"{inside[0]} lies in {folder}, where the training keeps its state and then deletes it.",
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
    """Return all faults that would keep outputs from being written, except a lack of disk space."""
    paths = [(path, False) for path in files if path] + [(path, True) for path in folders if path]
    return [
        fault
        for path, folder in paths
        for fault in check_output(path, inputs=inputs, size=0, force=force, folder=folder)
    ]


def check_training(settings: TrainingSettings, device: str) -> list[LorsmergeError]:
    """Return the faults of the settings of a training, and of its device."""
    faults: list[LorsmergeError] = []
    for what, name, choices in (
        ("schedule", settings.schedule, SCHEDULES),
        ("label space", settings.label_space, LABEL_SPACES),
    ):
        if name not in choices:
            faults.append(UsageFault(f"There is no {what} {name!r}.", f"Use {', '.join(choices)}."))
    rate = settings.learning_rate
    if not 0 < rate < 1:
        faults.append(UsageFault(f"A learning rate of {rate:g} is not between 0 and 1."))
    if not 0 < settings.epochs < math.inf:
        faults.append(
            UsageFault(
                f"--epochs {settings.epochs:g} is not a positive number of passes.",
                "Give --epochs 1, for example; to score a model as it is, use `lorsmerge eval`.",
            )
        )
    for option, value in (("--warmup", settings.warmup), ("--clip", settings.clip)):
        if not 0 <= value < math.inf:
            faults.append(UsageFault(f"{option} {value:g} is not a number of at least 0."))
    for option, share in (
        ("--timestamps", settings.timestamps),
        ("--condition", settings.condition),
    ):
        if share is not None and not 0 <= share <= 1:
            faults.append(UsageFault(f"{option} {share:g} is no share from 0 to 1."))
    if settings.pack is not None and not 0 < settings.pack < math.inf:
        faults.append(
            UsageFault(
                f"--pack {settings.pack:g} is not a positive number of seconds.",
                "Give the seconds of the model's window: 30 for OpenAI's.",
            )
        )
    temperature = settings.language_temperature
    if temperature is not None and not 1 <= temperature < math.inf:
        faults.append(
            UsageFault(
                f"--language-temperature {temperature:g} is not a number of at least 1.",
                "1 takes languages as the data has them; 100 takes all equally.",
            )
        )
    if device.startswith("cuda:"):
        faults.append(
            UsageFault(
                f"--device {device} cannot be used for training.",
                f"Use CUDA_VISIBLE_DEVICES={device[5:]} with --device cuda; torchrun takes several.",
            )
        )
    elif device not in DEVICES:
        faults.append(UsageFault(f"There is no device {device!r}.", f"Use {', '.join(DEVICES)}."))
    if settings.masks is not None:
        faults += _caught(parse_masks, settings.masks)
    for option, count in (("--eval-steps", settings.eval_steps), ("--patience", settings.patience)):
        if count is not None and count < 1:
            faults.append(UsageFault(f"{option} {count} is not a whole number from 1 on."))
    # torchrun and accelerate set the variable in each process
    faults += _caught(settings.batches, int(os.environ.get("WORLD_SIZE", "1")))
    return faults


def check_share(option: str, share: float) -> list[LorsmergeError]:
    """Return the fault of a share of a whole that has to have other parts too."""
    if 0 < share < 1:
        return []
    return [UsageFault(f"{option} {share:g} is no share between 0 and 1.")]


def check_reporter(name: str | None) -> list[LorsmergeError]:
    """Return a fault if there is no such place to report a training to, or its package is missing.

    Args:
        name: one of `REPORTERS`; None for none.
    """
    if name is None:
        return []
    if name not in REPORTERS:
        what = f"--report-to: a training cannot be reported to {name!r}."
        return [UsageFault(what, f"Use {' or '.join(REPORTERS)}.")]
    if any(find_spec(package) for package in REPORTERS[name]):
        return []
    package, how = REPORTERS[name][0], f"Install it with `pip install 'lorsmerge[{name}]'`."
    return [LorsmergeError(f"--report-to {name} needs the package {package}.", how)]


def _caught(check: Any, *arguments: Any) -> list[LorsmergeError]:
    """Return the faults that a check raises, those of `Faults` one by one."""
    try:
        check(*arguments)
    except Faults as found:
        return list(found.errors)
    except LorsmergeError as fault:
        return [fault]
    return []
