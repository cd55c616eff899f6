"""Transcribe each teacher's rows, and write the texts that can be learnt from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lorsmerge_cli.checkpoint.references import pinned
from lorsmerge_cli.data.manifest import write_manifest
from lorsmerge_cli.data.report import hours
from lorsmerge_cli.data.utterance import Answer, PseudoLabel, Utterance
from lorsmerge_cli.errors import Interrupted, LorsmergeError
from lorsmerge_cli.metrics.looping import is_looping
from lorsmerge_cli.operations.transcribe.plan import LabelPlan, Lesson
from lorsmerge_cli.outputs import atomic_file, write_json
from lorsmerge_cli.recipe.published import published_name
from lorsmerge_cli.results.journal import Journal, open_journal
from lorsmerge_cli.speech.decoding.clips import decode_answers
from lorsmerge_cli.speech.source import parse_speech_dtype
from lorsmerge_cli.version import __version__

EMPTY, LOOPING, CUT, UNSURE = "empty", "looping", "cut", "unsure"  # reasons to skip a text


@dataclass(frozen=True)
class LabelGroup:
    """What a teacher made of one language and task.

    Attributes:
        teacher: its path or Hub id.
        identity: digest of its weights.
        language, task: of the rows.
        utterances: that it transcribed.
        hours: of those that are written.
        kept: texts that are written.
        skipped: reason -> texts that are not.
        confidence: mean over the texts that are written; None if none has one.
    """

    teacher: str
    identity: str
    language: str
    task: str
    utterances: int
    hours: float
    kept: int
    skipped: Mapping[str, int]
    confidence: float | None


@dataclass(frozen=True)
class LabelReport:
    """Pseudo-labels that were written.

    Attributes:
        output: the manifest.
        journal: every hypothesis, the skipped ones too.
        record: how the manifest was made.
        audio: folder of recordings that were written beside it, if any.
        rows: of the manifest.
        resumed: hypotheses that an earlier run had made.
        groups: by teacher, language and task.
        warnings: what the user should know.
    """

    output: Path
    journal: Path
    record: Path
    audio: Path | None
    rows: int
    resumed: int
    groups: tuple[LabelGroup, ...]
    warnings: tuple[str, ...] = ()


def run_labels(
    plan: LabelPlan,
    *,
    device: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LabelReport:
    """Carry out a plan, one teacher after the other in memory.

    Args:
        plan: checked pseudo-labels.
        device: as in `resolve_device`.
        progress: called with the utterances just transcribed and those in all.

    Raises:
        Interrupted: a signal came; what was transcribed stays in the journal.
        LorsmergeError: audio cannot be read any more, memory or disk is too small, or no text can
            be learnt from; the journal stays.
    """
    total = sum(len(lesson.rows) for lesson in plan.lessons)
    done = resumed = 0

    def count(step: int) -> None:
        nonlocal done
        done += step
        progress(step, total)

    with open_journal(plan.journal) as journal:
        answers: dict[str, Answer] = {}
        try:
            for lesson in plan.lessons:
                known = journal.known(lesson.rows, lesson.made_by)
                resumed += len(known)
                count(len(known))
                answers |= known | _ask(lesson, known, journal, plan.dtype, device, count)
        except KeyboardInterrupt:
            raise Interrupted(
                f"Interrupted after {done} of {total} utterances, which are kept in {plan.journal}.",
                "The same command resumes from there.",
            ) from None
        report = _write(plan, answers)
    return replace(report, resumed=resumed)


def _ask(
    lesson: Lesson,
    known: Mapping[str, Answer],
    journal: Journal,
    dtype: str,
    device: str,
    count: Callable[[int], None],
) -> dict[str, Answer]:
    """Return the answers of a teacher that an earlier run has not made."""
    wanted = [row for row in lesson.rows if row.id not in known]
    if not wanted:
        return {}
    speech = lesson.source.open(parse_speech_dtype(dtype), device)

    def keep(row: Utterance, answer: Answer) -> None:
        journal.add([(row, answer)], lesson.made_by)
        count(1)

    answers = decode_answers(speech, wanted, lesson.decoding, keep, confidence=True)
    del speech
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return answers


def _flaws(answer: Answer) -> list[str]:
    """Return what makes a text one that no model should learn from."""
    flaws = {
        EMPTY: not answer.text.strip(),
        LOOPING: is_looping(answer.text),
        CUT: bool(answer.cut),
    }
    return [name for name, applies in flaws.items() if applies]


def _reason(plan: LabelPlan, answer: Answer) -> str | None:
    """Return why a text is skipped; None for one that is written."""
    flaws = [] if plan.keep_flawed else _flaws(answer)
    low = plan.min_confidence is not None and (
        answer.confidence is None or answer.confidence < plan.min_confidence
    )
    return next(iter(flaws), UNSURE if low else None)


def _write(plan: LabelPlan, answers: Mapping[str, Answer]) -> LabelReport:
    """Write the manifest and the record of its making."""
    reasons = {name: _reason(plan, answer) for name, answer in answers.items()}
    labels: dict[str, Utterance] = {}
    groups: list[LabelGroup] = []
    for lesson in plan.lessons:
        teacher = pinned(lesson.source.checkpoint.path) or str(lesson.source.checkpoint.path)
        for row in lesson.rows:
            answer = answers[row.id]
            label = PseudoLabel(teacher, lesson.identity, answer.confidence)
            labels[row.id] = replace(row, text=answer.text, label=label)
        groups += _groups(lesson, teacher, labels, reasons)
    kept = [
        labels[row.id]
        for row in plan.data.utterances
        if row.id in labels and reasons[row.id] is None
    ]
    if not kept:
        skipped = Counter(filter(None, reasons.values()))
        raise LorsmergeError(
            f"No text can be learnt from: {_listed(skipped)}. Nothing was written but {plan.journal}.",
            "Look at the texts there; --keep-flawed and a lower --min-confidence keep more.",
        )
    more = {row.id: {"flaws": flaws} for row in kept if (flaws := _flaws(answers[row.id]))}
    document = _document(plan, groups, len(kept))

    def record() -> None:
        with atomic_file(plan.record, force=plan.force) as partial:
            write_json(partial, document)

    folder = write_manifest(plan.output, kept, force=plan.force, more=more, beside=record)
    return LabelReport(
        plan.output, plan.journal, plan.record, folder, len(kept), 0, tuple(groups),
        _warnings(groups),
    )  # fmt: skip


def _groups(
    lesson: Lesson,
    teacher: str,
    labels: Mapping[str, Utterance],
    reasons: Mapping[str, str | None],
) -> list[LabelGroup]:
    """Return the figures of a teacher, by language and task."""
    pairs: dict[tuple[str, str], list[Utterance]] = {}
    for row in lesson.rows:
        pairs.setdefault((row.language, row.task), []).append(labels[row.id])
    groups = []
    for pair, rows in pairs.items():
        kept = [row for row in rows if reasons[row.id] is None]
        sure = [row.label.confidence for row in kept if row.label]
        known = [value for value in sure if value is not None]
        groups.append(
            LabelGroup(
                teacher, lesson.identity, *pair, len(rows), round(hours(kept), 4), len(kept),
                dict(Counter(filter(None, (reasons[row.id] for row in rows)))),
                round(sum(known) / len(known), 4) if known else None,
            )
        )  # fmt: skip
    return groups


def _document(plan: LabelPlan, groups: Sequence[LabelGroup], rows: int) -> dict[str, Any]:
    """Return how a manifest was made, for the file beside it."""
    decoding = {
        lesson.identity: asdict(lesson.decoding) | {"dtype": plan.dtype} for lesson in plan.lessons
    }
    for settings in decoding.values():
        del settings["memory"]  # no text depends on it
    return {
        "lorsmerge": __version__,
        "data": [published_name(str(path)) for path in plan.paths],
        **({"hub": list(plan.data.hub)} if plan.data.hub else {}),
        **({"selected": list(plan.data.selected)} if plan.data.selected else {}),
        "rows": rows,
        "teachers": [asdict(group) for group in groups],
        "decoding": decoding,
        "min_confidence": plan.min_confidence,
        "keep_flawed": plan.keep_flawed,
        "without_teacher": dict(plan.others),
        "dropped": plan.data.reasons,
    }


def _warnings(groups: Sequence[LabelGroup]) -> tuple[str, ...]:
    """Return a warning for each teacher most of whose texts of a language are skipped."""
    return tuple(
        f"{group.teacher}: {group.utterances - group.kept} of {group.utterances} texts of "
        f"{group.language} {group.task} are skipped ({_listed(group.skipped)})."
        for group in groups
        if 2 * group.kept < group.utterances
    )


def _listed(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items())
