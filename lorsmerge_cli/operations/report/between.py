"""What got better and worse between two models, utterance by utterance, with their audio."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from lorsmerge_cli.data.languages import TASKS, text_language
from lorsmerge_cli.data.readers import read_manifest
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import UsageFault, did_you_mean
from lorsmerge_cli.metrics import metrics_of
from lorsmerge_cli.metrics.metric import Metric, Scoring
from lorsmerge_cli.metrics.normalisation import normalisation_for, normalise
from lorsmerge_cli.metrics.wer import unit_of
from lorsmerge_cli.operations.report.entries import Entry, Key
from lorsmerge_cli.operations.report.results import Results
from lorsmerge_cli.results.records import Hypothesis

MOST = 300  # utterances of a section of the page
HIT, SUBSTITUTED, DELETED, INSERTED = "hit", "sub", "del", "ins"
KINDS = {"equal": HIT, "substitute": SUBSTITUTED, "delete": DELETED, "insert": INSERTED}  # jiwer's


@dataclass(frozen=True)
class Piece:
    """Neighbouring words of an alignment: what was to be said, and what was said."""

    kind: str
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class Change:
    """An utterance that two models answered with other scores.

    Attributes:
        place: data set, language and task.
        row: the first model's answer.
        change: errors more, or points less: positive where the second is worse.
        shown: the change, in words.
        pieces: of the first model's answer, and of the second's.
        audio: address of the recording from the page on; empty where there is none.
    """

    place: str
    row: Hypothesis
    change: float
    shown: str
    pieces: tuple[tuple[Piece, ...], tuple[Piece, ...]]
    audio: str


@dataclass(frozen=True)
class Section:
    """The utterances that got worse, or better, the most changed first, and how many there are."""

    name: str
    title: str
    count: int
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Between:
    """The content of the page."""

    title: str
    names: tuple[str, str]
    about: tuple[str, ...]
    sections: tuple[Section, ...]


def between(
    results: Results, names: tuple[str, str], data: Sequence[tuple[str, Path]], folder: Path
) -> Between:
    """Compare the answers of two models.

    Args:
        results: that have both.
        names: of the models, as `eval` had them.
        data: name and path of test sets whose audio is linked to.
        folder: where the page will lie.

    Raises:
        UsageFault: there is no such model, none that both answered, or no such test set.
        LorsmergeError: a manifest cannot be read.
    """
    first, second = (_entries(results, name) for name in names)
    keys = [key for key in first if key in second]
    if not keys:
        raise UsageFault(
            f"--between {names[0]} {names[1]}: they were scored on no test set that both have.",
            "Score both on one.",
        )
    audio = _audio(results, data)
    changes: list[Change] = []
    equal = 0
    for key in keys:
        scoring = results.scoring.of(key[0])
        found, same = _changes(key, first[key], second[key], scoring, audio, folder)
        changes += found
        equal += same
    worse = sum(each.change > 0 for each in changes)
    about = (
        f"{len(changes) + equal} utterances: {worse} got worse from {names[0]} to {names[1]}, "
        f"{len(changes) - worse} got better, {equal} are as good as before and not shown.",
        "Errors are counted as in the scores, in texts that are normalised in the same way; of translations, the "
        "difference in chrF2 is shown.",
    )
    tasks = [task for task in TASKS if any(c.row.task == task for c in changes)]
    sections = [
        section
        for task in tasks  # whose changes are in different units
        for section in _sections(task, [c for c in changes if c.row.task == task], len(tasks) > 1)
    ]
    return Between(f"From {names[0]} to {names[1]}", names, about, tuple(sections))


def _sections(task: str, changes: Sequence[Change], named: bool) -> tuple[Section, Section]:
    worse = sorted((c for c in changes if c.change > 0), key=lambda c: -c.change)
    better = sorted((c for c in changes if c.change < 0), key=lambda c: c.change)
    suffix = f", {task.upper()}" if named else ""
    return (
        Section(f"worse-{task}", f"Got worse{suffix}", len(worse), tuple(worse[:MOST])),
        Section(f"better-{task}", f"Got better{suffix}", len(better), tuple(better[:MOST])),
    )


def _entries(results: Results, name: str) -> dict[Key, Entry]:
    found = {entry.key: entry for entry in results.entries if entry.record.model == name}
    if not found:
        known = list(dict.fromkeys(entry.record.model for entry in results.entries))
        raise UsageFault(f"--between: no result is of {name!r}.", did_you_mean(name, known).strip())
    return found


def _changes(
    key: Key,
    first: Entry,
    second: Entry,
    scoring: Scoring,
    audio: Mapping[tuple[Key, str], Utterance],
    folder: Path,
) -> tuple[list[Change], int]:
    """Return the utterances of a test set that changed, and the number of others."""
    dataset, language, task = key
    reported = metrics_of(language, task)[0]
    metric = reported if reported.normalised else metrics_of(language, task)[-1]
    how = normalisation_for(language, scoring.normalisation) if reported.normalised else "raw"
    unit = unit_of(text_language(language, task))
    pairs = list(zip(first.record.rows, second.record.rows, strict=True))
    amounts = zip(
        *(_amounts(metric, rows, scoring) for rows in zip(*pairs, strict=True)), strict=True
    )
    found = []
    for (one, other), (before, after) in zip(pairs, amounts, strict=True):
        if before == after or (before != before and after != after):  # NaN: nothing was to be said
            continue
        change = after - before
        pieces = (_pieces(one, how, unit), _pieces(other, how, unit))
        shown = _in_words(metric, before, after)
        link = _link(audio.get((key, one.id)), folder)
        found.append(Change(f"{dataset} {language} {task}", one, change, shown, pieces, link))
    return found, len(pairs) - len(found)


def _amounts(metric: Metric, rows: Sequence[Hypothesis], scoring: Scoring) -> list[float]:
    """Return errors of each row, or points that it lacks: less is better."""
    statistics = metric.statistics(rows, scoring)
    if metric.normalised:
        return [float(errors) for errors in statistics[:, 0]]
    return [-metric.gain(float(score)) for score in metric.score(statistics)]


def _in_words(metric: Metric, before: float, after: float) -> str:
    if metric.normalised:
        return f"{before:.0f} to {after:.0f} errors"
    return f"{metric.name} {abs(before):.1f} to {abs(after):.1f}"


def _pieces(row: Hypothesis, how: str, unit: str) -> tuple[Piece, ...]:
    """Align an answer with its reference, in words or characters."""
    import jiwer

    reference, hypothesis = (
        normalise(text, how).split() for text in (row.reference, row.hypothesis)
    )
    glue = " "
    if unit == "char":
        reference, hypothesis, glue = list("".join(reference)), list("".join(hypothesis)), ""
    if not (reference and hypothesis):
        kind = DELETED if reference else INSERTED
        return (
            (Piece(kind, glue.join(reference), glue.join(hypothesis)),)
            if reference or hypothesis
            else ()
        )
    # words that are single characters: one alignment for both units
    found = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
    return tuple(
        Piece(
            KINDS[chunk.type],
            glue.join(reference[chunk.ref_start_idx : chunk.ref_end_idx]),
            glue.join(hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        )
        for chunk in found.alignments[0]
    )


def _audio(results: Results, data: Iterable[tuple[str, Path]]) -> dict[tuple[Key, str], Utterance]:
    """Return the utterances of test sets, of which no audio is opened."""
    found: dict[tuple[Key, str], Utterance] = {}
    keys = list(dict.fromkeys(entry.key for entry in results.entries))
    for name, path in data:
        own = [key for key in keys if key[0] == name]
        if not own:
            known = list(dict.fromkeys(key[0] for key in keys))
            raise UsageFault(
                f"--data {path}: no result is on {name!r}.{did_you_mean(name, known)}",
                "Give it that name with NAME=PATH.",
            )
        languages, tasks = ({key[n] for key in own} for n in (1, 2))
        rows, _ = read_manifest(
            path, split=results.splits.get(name),
            language=languages.pop() if len(languages) == 1 else None,
            task=tasks.pop() if len(tasks) == 1 else None,
        )  # fmt: skip
        found |= {((name, row.language, row.task), row.id): row for row in rows}
    return found


def _link(utterance: Utterance | None, folder: Path) -> str:
    """Return the address of a recording, and of the piece of it, from a folder on."""
    path = None if utterance is None else utterance.audio.path
    if utterance is None or path is None or not utterance.audio.exists():
        return ""
    address = quote(os.fsencode(os.path.relpath(path.resolve(), folder.resolve())))
    if not (utterance.start or utterance.segment):
        return address
    end = "" if utterance.duration is None else f",{utterance.start + utterance.duration:g}"
    return f"{address}#t={utterance.start:g}{end}"
