"""Stats: what a fine-tune's layers do on audio, as a file that merges weigh its delta by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lorsmerge_cli.calibration.file import Layout, Origin, StatisticsFile, write_statistics
from lorsmerge_cli.checkpoint.fingerprint import fingerprint
from lorsmerge_cli.checkpoint.modules import half_of
from lorsmerge_cli.checkpoint.names import linear_weights
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.checkpoint.references import pinned, with_commits
from lorsmerge_cli.core.combining.fisher import FISHER
from lorsmerge_cli.core.combining.regmean import GRAM
from lorsmerge_cli.core.low_rank_sparse import accumulable
from lorsmerge_cli.core.merging import is_finite
from lorsmerge_cli.data.conditions import parse_conditions
from lorsmerge_cli.data.dataset import drop_warnings, load_data
from lorsmerge_cli.data.digests import KINDS, DataDigests, digests_of
from lorsmerge_cli.data.hours import Given
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.deltas.task_vector import base_fingerprint
from lorsmerge_cli.errors import LorsmergeError, Mismatch, NonFinite, UsageFault, raise_all
from lorsmerge_cli.inputs import FilePath, path_of, several
from lorsmerge_cli.outputs import atomic_file, check_output, check_unchanged, leftovers
from lorsmerge_cli.recipe.published import recorded_call
from lorsmerge_cli.recipe.record import training_of
from lorsmerge_cli.speech.decoding.clips import DecodingSettings, decode_answers
from lorsmerge_cli.speech.model import SpeechModel
from lorsmerge_cli.speech.source import ModelSource, compute_dtype, find_model, parse_speech_dtype
from lorsmerge_cli.speech.statistics import gram_matrices, input_of, needs_texts, squared_gradients
from lorsmerge_cli.usage import check_statistics
from lorsmerge_cli.version import __version__

FLOAT32, FLOAT64 = 4, 8  # bytes of an element
BASE_DIGITS = 16  # of a base's fingerprint, as `finetune` records it


@dataclass(frozen=True)
class StatsPlan:
    """Checked inputs of `stats`.

    Attributes:
        source: the fine-tune.
        utterances: what it is to hear.
        layout: what will be stored.
        output: the file to write.
        labels: `own`, `data`, or `none` where the decoder is left out.
        dtype: to compute in.
        device: to compute on.
        batch_size: of decoding, None for what memory allows.
        force: replace an output that exists.
        warnings: what the user should know before the work.
        drop_notes: a line for each row of the data that is dropped.
        made: whether the output holds these very statistics already, by an earlier run.
    """

    source: ModelSource
    utterances: tuple[Utterance, ...]
    layout: Layout
    output: Path
    labels: str
    dtype: str
    device: str
    batch_size: int | None
    force: bool
    warnings: tuple[str, ...]
    drop_notes: tuple[str, ...]
    made: bool = False

    @property
    def steps(self) -> int:
        """How often `run_stats` reports progress: once for an utterance decoded or heard."""
        passes = len(self.layout.kinds) + (self.labels == "own")
        return 0 if self.made else passes * len(self.utterances)

    @property
    def seconds(self) -> float:
        """Length of the audio."""
        return sum(row.duration or 0.0 for row in self.utterances)

    @property
    def memory(self) -> int:
        """Bytes of weights, gradients and sums; activations are not counted."""
        weights = sum(spec.numel for spec in self.source.checkpoint.float_specs.values())
        squares = sum(width**2 for width in self.layout.widths.values())
        each = 2 * FLOAT32 + FLOAT64 if self.layout.shapes else FLOAT32
        return each * weights + FLOAT64 * squares


@dataclass(frozen=True)
class StatsReport:
    """What was written.

    Attributes:
        output: the file of statistics.
        kinds: `gram`, `fisher` or both.
        layers: linear layers that have a Gram matrix.
        utterances: how many were heard.
        seconds: their length.
        nbytes: size of the stored statistics.
        warnings: what the user should know.
    """

    output: Path
    kinds: tuple[str, ...]
    layers: int
    utterances: int
    seconds: float
    nbytes: int
    warnings: tuple[str, ...] = ()


def stats(
    model: FilePath,
    data: Sequence[FilePath] | FilePath,
    output: FilePath,
    *,
    kind: str = GRAM,
    labels: str = "own",
    half: str = "all",
    split: str = "train",
    language: str | None = None,
    task: str | None = None,
    only: Sequence[str] | str = (),
    where: Sequence[str] | str = (),
    hours: Given = None,
    data_seed: int = 0,
    allow_parts: bool = False,
    format: str | None = None,
    batch_size: int | None = None,
    dtype: str = "float32",
    device: str = "auto",
    config_dir: FilePath | None = None,
    force: bool = False,
    command: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> StatsReport:
    """Write statistics of a fine-tune over audio, which `merge` takes for `regmean` and `fisher`.

    Args:
        model: the fine-tune: a model folder, a file of weights, or a Hub id.
        data: manifests, data folders or references to the Hub, of audio as the fine-tune is to hear it.
        output: the file of statistics.
        kind: `gram` for the inputs of linear layers, which RegMean needs; `fisher` for squared
            gradients of all weights, which Fisher merging needs; `both`.
        labels: what the decoder is given: `own`, the fine-tune's own greedy transcripts, or `data`,
            the texts of the data.
        half: of the model, whose tensors there are to be statistics of: `encoder`, which needs no
            texts and no decoding, `decoder`, or `all`. Merges average the other tensors.
        split: of data that has several.
        language: of rows that do not name theirs; rows of another one are skipped.
        task: of rows that do not name theirs; rows of another one are skipped.
        only: `COLUMN=VALUE` of the rows to use, as `--only`.
        where: comparisons such as `duration<15` that are true of them, as `--where`.
        hours: about how much of each data set to take, `5` or `ca=5` for a language; all by default.
        data_seed: of the choice of rows for `hours`.
        allow_parts: use rows that are shorter than their files and give no offset.
        format: of the data, found out by default.
        batch_size: utterances decoded at a time; by memory by default.
        dtype: to compute in: `float32`, `float16`, `bfloat16`, or `auto` for float16 on CUDA.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        config_dir: model folder or Hub id to take config and tokenizer from, for a bare file.
        force: replace an output that exists.
        command: the line for the file's record; this call by default.
        progress: called with the utterances just decoded or heard and those in all.

    Raises:
        LorsmergeError: see the subclasses; nothing is written then.

    Example:
        >>> report = stats("ca", "test.jsonl", "ca.stats", language="ca", task="asr")
        >>> report.output, report.kinds, report.layers
        (PosixPath('ca.stats'), ('gram',), 26)
    """
    command = command or recorded_call(
        "stats", model, several(data), output, kind=kind, labels=labels, half=half,
        split=split, language=language, task=task, only=several(only),
        where=several(where), hours=hours, data_seed=data_seed, format=format,
    )  # fmt: skip
    plan = plan_stats(
        Path(model), [Path(path) for path in several(data)], Path(output), kind=kind,
        labels=labels, half=half, split=split, language=language, task=task, hours=hours,
        seed=data_seed, allow_parts=allow_parts, format=format, batch_size=batch_size,
        conditions=parse_conditions(several(only), several(where)),
        dtype=dtype, device=device, config_dir=path_of(config_dir), force=force,
    )  # fmt: skip
    report = run_stats(plan, command, progress)
    return replace(report, warnings=(*plan.warnings, *report.warnings))


def plan_stats(
    model: Path,
    data: Sequence[Path],
    output: Path,
    *,
    kind: str,
    labels: str,
    half: str,
    batch_size: int | None,
    dtype: str,
    device: str,
    config_dir: Path | None,
    force: bool,
    **reading: Any,
) -> StatsPlan:
    """Check model, data and output; the settings are those of `stats`.

    `reading` are further arguments of `load_data`.

    Raises:
        LorsmergeError: every fault found.
    """
    faults = check_statistics(kind, labels, half)
    raise_all(faults if data else [*faults, UsageFault("There is no data.", "Give audio to hear.")])
    dtype = compute_dtype(dtype, device)
    return plan_stats_of(
        find_model(model, config_dir=config_dir), data, output, kind=kind, labels=labels, half=half,
        batch_size=batch_size, dtype=dtype, device=device, force=force, **reading,
    )  # fmt: skip


def plan_stats_of(
    source: ModelSource,
    data: Sequence[Path],
    output: Path,
    *,
    kind: str,
    labels: str = "own",
    half: str = "all",
    batch_size: int | None = None,
    dtype: str = "float32",
    device: str = "auto",
    force: bool = False,
    reuse: bool = False,
    shared: bool = False,
    **reading: Any,
) -> StatsPlan:
    """Check the data and the output for the statistics of a model that is open.

    The settings and their defaults are those of `stats`; `reading` are further arguments of
    `load_data`. With `reuse`, an output that holds the very statistics already is no fault, and is
    not written again. With `shared`, other fine-tunes hear the data too: rows of other languages are no
    cause for a warning, and data sets of them no fault.

    Raises:
        LorsmergeError: every fault found.
    """
    layout = layout_of(source.checkpoint, kind, half)
    if not (layout.shapes or needs_texts(layout.widths)):
        labels = "none"
    inputs = [*source.files, *source.checkpoint.sources, *data]
    size = layout.nbytes
    raise_all(check_output(output, inputs=inputs, size=size, force=force or reuse))
    loaded = load_data(
        data, **reading, max_seconds=source.window, empty_text=labels != "data", decoded=True,
        shared=shared,
    )  # fmt: skip
    warnings = [
        *source.checkpoint.notes,
        *drop_warnings(loaded, skipped=not shared),
        *leftovers(output),
    ]
    plan = StatsPlan(
        source, loaded.utterances, layout, output, labels, dtype, device, batch_size, force,
        tuple(warnings), tuple(loaded.drop_notes),
    )  # fmt: skip
    if not (reuse and _is_made(plan)):
        raise_all(check_output(output, inputs=inputs, size=size, force=force))
        return plan
    return replace(plan, made=True)


def _is_made(plan: StatsPlan) -> bool:
    """Tell whether the output is a file of the statistics that a plan would make."""
    if not plan.output.is_file():
        return False
    try:
        there = StatisticsFile(plan.output)
    except LorsmergeError:
        return False
    origins = (there.origin, _origin(plan, plan.utterances, ""))
    found, wanted = (replace(origin, model="", made_by="") for origin in origins)
    return found == wanted and there.layout == plan.layout


def layout_of(checkpoint: Checkpoint, kind: str, half: str = "all") -> Layout:
    """Return what the statistics of a model consist of.

    Args:
        checkpoint: of the model.
        kind: `gram`, `fisher` or `both`.
        half: `encoder`, `decoder` or `all`.

    Raises:
        Mismatch: it has no linear layers to take Gram matrices of.
    """
    specs = {
        name: spec
        for name, spec in checkpoint.float_specs.items()
        if half in ("all", half_of(name))
    }
    inputs, widths, shapes = {}, {}, {}
    if kind != FISHER:
        inputs = {name: input_of(name) for name in sorted(linear_weights(specs))}
        widths = {name: specs[name].shape[1] for name in sorted(set(inputs.values()))}
        if not inputs:
            raise Mismatch(f"{checkpoint.path} has no linear layers.", "Give a Whisper.")
    if kind != GRAM:
        shapes = {name: spec.shape for name, spec in specs.items()}
    return Layout(inputs, widths, shapes)


def run_stats(
    plan: StatsPlan,
    command: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> StatsReport:
    """Let a model hear its audio, and write the statistics.

    Args:
        plan: checked inputs.
        command: for the record.
        progress: called with the utterances just decoded or heard and those in all.

    Raises:
        NonFinite: the weights, or what the layers make of the audio, are not finite.
        UnreadableFile: audio that cannot be read any more.
    """
    total = plan.steps
    with atomic_file(plan.output, force=plan.force) as partial:
        speech = plan.source.open(parse_speech_dtype(plan.dtype), plan.device)
        rows = plan.utterances
        if plan.labels == "own":
            rows = _transcribed(plan, speech, lambda: progress(1, total))
        tensors: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        if plan.layout.widths:
            grams, counts = gram_matrices(
                speech, rows, list(plan.layout.widths), lambda: progress(1, total)
            )
            tensors |= {f"{name}.{GRAM}": value for name, value in grams.items()}
        if plan.layout.shapes:
            squares = squared_gradients(speech, rows, lambda: progress(1, total))
            tensors |= {f"{name}.{FISHER}": squares[name] for name in plan.layout.shapes}
        for entry, values in tensors.items():
            if not is_finite(values.float()):
                raise _not_finite(entry, plan)
        write_statistics(partial, plan.layout, _origin(plan, rows, command), tensors, counts)
        check_unchanged(plan.source.identities)
    return StatsReport(
        plan.output, plan.layout.kinds, len(plan.layout.inputs), len(rows), plan.seconds,
        plan.layout.nbytes,
    )  # fmt: skip


def _transcribed(
    plan: StatsPlan, speech: SpeechModel, progress: Callable[[], None]
) -> tuple[Utterance, ...]:
    """Return the utterances with the model's own greedy transcripts."""
    answers = decode_answers(
        speech, plan.utterances, DecodingSettings(beam=1, batch_size=plan.batch_size),
        lambda row, answer: progress(),
    )  # fmt: skip
    return tuple(replace(row, text=answers[row.id].text) for row in plan.utterances)


def _not_finite(entry: str, plan: StatsPlan) -> NonFinite:
    half = plan.dtype not in ("float32", "fp32")
    remedy = "Give --dtype float32." if half else "Use another fine-tune."
    return NonFinite(f"{plan.source.name}: {entry!r} overflows on this audio.", remedy)


def _origin(plan: StatsPlan, rows: Sequence[Utterance], command: str) -> Origin:
    source, given = plan.source, Path(plan.source.name)
    base = str(training_of(source.checkpoint.folder).get("base", ""))
    if source.applied:
        base = base_fingerprint(source.checkpoint).digest[:BASE_DIGITS]
    sample = {}
    for name, spec in source.float_specs.items():
        middle = source.read(name).reshape(-1)[spec.numel // 2 :][:1]
        sample[name] = float(accumulable(middle)) if spec.numel else 0.0
    heard = digests_of(rows)
    # of texts that were not used, a sentence may well be scored again
    used = KINDS if plan.labels == "data" else ("audio", "speakers")
    return Origin(
        model=pinned(given) or given.name or str(given),
        fingerprint=fingerprint(source.float_specs, source.read),
        base=base,
        sample=sample,
        labels=plan.labels,
        utterances=len(rows),
        seconds=plan.seconds,
        data=_digest(heard, plan.labels),
        languages=tuple(dict.fromkeys((row.language, row.task) for row in rows)),
        settings={"dtype": plan.dtype},
        made_by=with_commits(command, [given]),
        version=__version__,
        digests={kind: heard.sketches[kind] for kind in used},
    )


def _digest(heard: DataDigests, labels: str) -> str:
    """Hash what a model was given: audio, prompts, and texts that are not its own."""
    digest = hashlib.sha256()
    for row, file in zip(heard.utterances, heard.files, strict=True):
        text = row.text if labels == "data" else ""
        entry = [file, row.start, row.duration, row.language, row.task, text]
        digest.update(json.dumps(entry).encode())
    return digest.hexdigest()
