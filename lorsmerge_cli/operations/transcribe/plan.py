"""Plan pseudo-labels: find the teacher of each row, and check all that is known before decoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorsmerge_cli.data.dataset import drop_warnings, load_data
from lorsmerge_cli.data.manifest import audio_faults
from lorsmerge_cli.data.report import DataReport
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import LorsmergeError, UsageFault, raise_all
from lorsmerge_cli.outputs import leftovers
from lorsmerge_cli.recipe.record import made_from
from lorsmerge_cli.speech.decoding.clips import DecodingSettings
from lorsmerge_cli.speech.memory import limited
from lorsmerge_cli.speech.source import ModelSource, compute_dtype, find_models
from lorsmerge_cli.usage import (
    Named,
    Taught,
    check_labelling,
    label_files,
    named_teachers,
)


@dataclass(frozen=True)
class Lesson:
    """A teacher and the rows that it transcribes.

    Attributes:
        source: the teacher.
        identity: digest of its weights.
        rows: utterances with durations.
        decoding: settings of the search, its own lists of suppressed tokens filled in.
        made_by: identity and settings, all that its texts depend on beside the audio.
    """

    source: ModelSource
    identity: str
    rows: tuple[Utterance, ...]
    decoding: DecodingSettings
    made_by: str


@dataclass(frozen=True)
class LabelPlan:
    """Pseudo-labels that were checked.

    Attributes:
        paths: the data sets.
        data: their rows that are transcribed, in order, and those that are dropped.
        lessons: each teacher's rows.
        output: the manifest.
        dtype: that the models compute in.
        min_confidence: of a text that is kept; None for no limit.
        keep_flawed: whether texts that are empty, cut or repeat themselves are kept.
        force: whether outputs that exist are replaced.
        others: rows that no teacher is for, by language and task.
        warnings: what the user should know.
    """

    paths: tuple[Path, ...]
    data: DataReport
    lessons: tuple[Lesson, ...]
    output: Path
    dtype: str
    min_confidence: float | None
    keep_flawed: bool
    force: bool
    others: Mapping[str, int]
    warnings: tuple[str, ...]

    @property
    def journal(self) -> Path:
        """File of the hypotheses, beside the output."""
        return label_files(self.output)[0]

    @property
    def record(self) -> Path:
        """File that says how the output was made."""
        return label_files(self.output)[1]


def plan_labels(
    data: Sequence[Path],
    teachers: Named,
    output: Path,
    *,
    min_confidence: float | None = None,
    keep_flawed: bool = False,
    skip_others: bool = False,
    beam: int = 5,
    batch_size: int | None = None,
    max_tokens: int | None = None,
    memory: int | None = None,
    dtype: str = "float32",
    device: str = "auto",
    config_dir: Path | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **reading: Any,
) -> LabelPlan:
    """Check data, teachers and outputs; the arguments are those of `pseudo_label`.

    `progress` is called with the utterances whose audio was just checked and those in all; `reading`
    are further arguments of `load_data`.

    Raises:
        LorsmergeError: every fault found; nothing is written.
    """
    raise_all(check_labelling(output, teachers, data, min_confidence=min_confidence, force=force))
    asked = DecodingSettings(beam, batch_size, max_tokens, memory=limited(memory))
    wanted = named_teachers(teachers)
    dtype = compute_dtype(dtype, device)
    paths = dict.fromkeys(wanted.values())
    found = find_models([(str(path), path) for path in paths], config_dir=config_dir)
    sources = dict(zip(paths, found, strict=True))
    # weights that are files of their own, which no output may replace
    inputs = [*data, *(file for source in found for file in source.files)]
    raise_all(check_labelling(output, teachers, inputs, min_confidence=min_confidence, force=force))
    loaded = load_data(
        data, **reading, labelled=False, decoded=True, progress=progress,
        max_seconds=min(source.window for source in found),
    )  # fmt: skip
    chosen = {row.id: _teacher_of(row, wanted) for row in loaded.utterances}
    others = Counter(
        f"{row.language} {row.task}" for row in loaded.utterances if chosen[row.id] is None
    )
    raise_all(
        _unmatched(wanted, set(chosen.values()), data)
        + ([] if skip_others else _untaught(others))
        + audio_faults(loaded.utterances, output, inputs=inputs, force=force)
    )
    lessons = []
    for path, source in sources.items():
        keys = {key for key in wanted if wanted[key] == path}
        rows = tuple(row for row in loaded.utterances if chosen[row.id] in keys)
        lessons.append(_lesson(source, rows, asked, dtype))
    raise_all([fault for lesson in lessons for fault in _prompt_faults(lesson)])
    if not any(lesson.rows for lesson in lessons):
        raise LorsmergeError(
            "No row of the data has a teacher.", "Give --teacher for its languages."
        )
    warnings = [*leftovers(output), *drop_warnings(loaded, 0.0)]
    if others:
        warnings.append(f"{others.total()} rows without a teacher are skipped: {_counted(others)}.")
    warnings += [text for lesson in lessons for text in _strangers(lesson)]
    return LabelPlan(
        tuple(data), loaded, tuple(lessons), output, dtype, min_confidence, keep_flawed, force,
        dict(others), tuple(warnings),
    )  # fmt: skip


def _teacher_of(row: Utterance, wanted: Mapping[Taught, Path]) -> Taught | None:
    """Return the most specific of the teachers that a row may have."""
    keys = ((row.language, row.task), (row.language, ""), ("", ""))
    return next((key for key in keys if key in wanted), None)


def _unmatched(
    wanted: Mapping[Taught, Path], used: set[Taught | None], data: Sequence[Path]
) -> list[LorsmergeError]:
    """Return a fault for each teacher of a language or task that no row has, as of a typo."""
    return [
        UsageFault(
            f"--teacher {'_'.join(filter(None, key))}={path} has nothing to transcribe: no row of "
            f"{', '.join(map(str, data))} is left for it.",
            "Leave it out, or correct its language or task.",
        )
        for key, path in wanted.items()
        if key not in used and key != ("", "")
    ]


def _untaught(others: Mapping[str, int]) -> list[LorsmergeError]:
    if not others:
        return []
    first = next(iter(others)).split()[0]
    return [
        UsageFault(
            f"No teacher is given for {_counted(others)}.",
            f"Give --teacher {first}=MODEL, one for all others by --teacher MODEL, or --skip-others to "
            "skip such rows.",
        )
    ]


def _counted(others: Mapping[str, int]) -> str:
    """Return counts in words: `12 utterances of fr asr, 3 of it asr`."""
    first, *rest = others.items()
    return ", ".join([f"{first[1]} utterances of {first[0]}", *(f"{n} of {x}" for x, n in rest)])


def _lesson(
    source: ModelSource, rows: tuple[Utterance, ...], asked: DecodingSettings, dtype: str
) -> Lesson:
    decoding = asked.with_lists_of(source.without_weights)
    identity = source.identity()
    return Lesson(source, identity, rows, decoding, f"{identity}|{decoding.signature(dtype)}")


def _prompt_faults(lesson: Lesson) -> list[LorsmergeError]:
    """Return faults of a teacher that cannot be asked for the languages and tasks of its rows."""
    speech, faults = lesson.source.without_weights, list[LorsmergeError]()
    for pair in dict.fromkeys((row.language, row.task) for row in lesson.rows):
        try:
            speech.prompt(*pair)
        except LorsmergeError as fault:
            faults.append(fault)
    return faults


def _strangers(lesson: Lesson) -> list[str]:
    """Return a warning where a teacher's record names other languages and tasks than its rows'."""
    made = made_from(lesson.source.checkpoint, (), "")
    parts = made.get("deltas") or [made]
    if not all(part.get("trained_on") for part in parts):
        return []
    learnt = {(group["language"], group["task"]) for part in parts for group in part["trained_on"]}
    pairs = dict.fromkeys((row.language, row.task) for row in lesson.rows)
    asked = [" ".join(pair) for pair in pairs if pair not in learnt]
    known = ", ".join(sorted(" ".join(pair) for pair in learnt))
    return [
        f"{lesson.source.name} was fine-tuned on {known}, and transcribes {', '.join(asked)} here."
    ] * bool(asked)
