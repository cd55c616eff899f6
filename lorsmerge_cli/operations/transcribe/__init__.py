"""Transcribe audio files with several models, or data sets with a teacher for each language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from lorsmerge_cli.data.conditions import parse_conditions
from lorsmerge_cli.data.hours import Given
from lorsmerge_cli.inputs import FilePath, path_of, several
from lorsmerge_cli.operations.transcribe.files import Transcript, transcribe
from lorsmerge_cli.operations.transcribe.plan import LabelPlan, plan_labels
from lorsmerge_cli.operations.transcribe.recordings import (
    TranscriptsReport,
    transcribe_recordings,
)
from lorsmerge_cli.operations.transcribe.run import LabelReport, run_labels
from lorsmerge_cli.usage import Named

__all__ = [
    "LabelPlan",
    "LabelReport",
    "Transcript",
    "TranscriptsReport",
    "plan_labels",
    "pseudo_label",
    "run_labels",
    "transcribe",
    "transcribe_recordings",
]


def pseudo_label(
    data: Sequence[FilePath] | FilePath,
    teachers: Named,
    output: FilePath,
    *,
    split: str | None = None,
    language: str | None = None,
    task: str | None = None,
    only: Sequence[str] | str = (),
    where: Sequence[str] | str = (),
    hours: Given = None,
    data_seed: int = 0,
    allow_parts: bool = False,
    format: str | None = None,
    min_confidence: float | None = None,
    keep_flawed: bool = False,
    skip_others: bool = False,
    beam: int = 5,
    batch_size: int | None = None,
    max_tokens: int | None = None,
    memory: int | None = None,
    dtype: str = "float32",
    device: str = "auto",
    config_dir: FilePath | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LabelReport:
    """Transcribe audio with the teacher of its language, into a manifest to learn from.

    Texts that the data has are neither read nor written. Hypotheses are kept in a journal beside the
    output, from which the same call resumes, and from which one with another `min_confidence` takes
    them without decoding.

    Args:
        data: manifests, data folders, or references to the Hub; their rows need no text.
        teachers: `ca` or `ca_st` -> model folder, file of weights or Hub id; one alone, or under an
            empty string, is for all other rows. In place of a mapping, `ca=MODEL`.
        output: the manifest to write.
        split: of data that has several.
        language: of rows that do not name theirs; rows of another one are skipped.
        task: of rows that do not name theirs; rows of another one are skipped.
        only: `COLUMN=VALUE` of the rows to use, as `--only`.
        where: comparisons such as `duration<15` that are true of them, as `--where`.
        hours: about how much of each data set to take, `5` or `ca=5` for a language; all by default.
        data_seed: of the choice of rows for `hours`.
        allow_parts: use rows that are shorter than their files and give no offset.
        format: of the data, found out by default.
        min_confidence: skip texts whose mean log-probability of a token is below this; it is at
            most 0, and Whisper's own threshold is -1.
        keep_flawed: keep texts that are empty, repeat themselves or were cut at the limit of tokens,
            which are skipped by default.
        skip_others: skip rows that no teacher is for, which are an error by default.
        beam: hypotheses in the search; 1 is greedy.
        batch_size: utterances at a time; by memory by default.
        max_tokens: most tokens of a text; the model's limit by default.
        memory: bytes that the process may use in all; no limit by default.
        dtype: the models compute in: `float32`, `float16`, `bfloat16`, or `auto` for float16 on CUDA.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        config_dir: model folder or Hub id to take config and tokenizer from, for bare files.
        force: replace outputs that exist; the journal is resumed all the same.
        progress: called with the utterances just transcribed and those in all.

    Raises:
        LorsmergeError: see the subclasses; what was transcribed stays in the journal.

    Example:
        >>> report = pseudo_label("test.jsonl", {"ca": "ca", "": "de"}, "pseudo.jsonl", keep_flawed=True)
        >>> report.output, report.rows, sorted({(group.teacher, group.language) for group in report.groups})
        (PosixPath('pseudo.jsonl'), 10, [('ca', 'ca'), ('de', 'de'), ('de', 'zh')])
    """
    plan = plan_labels(
        [Path(path) for path in several(data)], teachers, Path(output), split=split,
        language=language, task=task, hours=hours, seed=data_seed, allow_parts=allow_parts,
        conditions=parse_conditions(several(only), several(where)),
        format=format, min_confidence=min_confidence, keep_flawed=keep_flawed,
        skip_others=skip_others, beam=beam, batch_size=batch_size, max_tokens=max_tokens,
        memory=memory, dtype=dtype, device=device, config_dir=path_of(config_dir), force=force,
    )  # fmt: skip
    report = run_labels(plan, device=device, progress=progress)
    return replace(report, warnings=(*plan.warnings, *report.warnings))
