"""Results files of `eval`, checked and joined for `report`.

A model's name is a system's, or `SYSTEM:seedN` where a system is several models that are to be
averaged; with --runs any `SYSTEM:RUN`, as combinations of languages are (`lors:ca+de`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorsmerge_cli.data.leakage import Shared
from lorsmerge_cli.data.utterance import NOT_ASKED_FOR
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UnreadableFile, named, raise_all
from lorsmerge_cli.metrics.flaws import FLAWS
from lorsmerge_cli.metrics.metric import Scoring
from lorsmerge_cli.operations.report.entries import (
    RUN_MARK,
    Entry,
    Key,
    Row,
    Runs,
    origin_of,
    rows_of,
    system_and_run,
)
from lorsmerge_cli.results.document import StoredResults
from lorsmerge_cli.results.document import read_results as read_document
from lorsmerge_cli.results.records import few_blocks, metric_of, score
from lorsmerge_cli.results.suite import Published, published_for
from lorsmerge_cli.speech.engines import DEFAULT


@dataclass(frozen=True)
class Results:
    """The content of results files.

    Attributes:
        files: as given.
        entries: each (system, run, data set, language, task) once, but for those in `silent`.
        runs: system -> its runs, whatever their settings.
        rows: of tables, in order of appearance.
        scoring: of the first file, and of test sets that a suite scores in another way; all scores
            and paired tests are made under it.
        partial: data set -> how much of it was not scored, in words.
        notes: what a reader of the tables should know.
        published: figures for the test sets that compare with the scores, and those that do not.
        retention: test sets that a suite names for what was forgotten.
        splits: test set -> the split that was scored.
        silent: entries of test sets in which nothing is said, which have no score.
        heard: test set -> how, as `results.document.how_heard` has it, of the first file that has it.
    """

    files: tuple[Path, ...]
    entries: tuple[Entry, ...]
    runs: Mapping[str, Runs]
    rows: tuple[Row, ...]
    scoring: Scoring
    partial: Mapping[str, str]
    notes: tuple[str, ...]
    published: tuple[tuple[Published, ...], tuple[Published, ...]] = ((), ())
    retention: tuple[str, ...] = ()
    splits: Mapping[str, str | None] = field(default_factory=dict)
    silent: tuple[Entry, ...] = ()
    heard: Mapping[str, str] = field(default_factory=dict)

    @property
    def systems(self) -> list[str]:
        """Names of the systems, in order of appearance."""
        return list(self.runs)


def read_results(paths: Sequence[Path], *, runs: bool = False) -> Results:
    """Read results files and check that they may be compared in one table.

    Args:
        paths: of `eval -o`.
        runs: take what follows the last colon of any model's name for a run.

    Raises:
        UnreadableFile: a file that `eval -o` did not write.
        Mismatch: a model scored twice with other answers or weights, or systems on other utterances.
    """
    faults: list[LorsmergeError] = []
    documents: dict[Path, StoredResults] = {}
    entries: dict[tuple[str, str, Key], Entry] = {}
    for path in dict.fromkeys(paths):
        try:
            document = read_document(path)
            found = list(_entries(path, document, runs))
        except LorsmergeError as fault:
            faults.append(fault)
            continue
        documents[path] = document
        for entry in found:
            known = entries.setdefault((entry.system, entry.run, entry.key), entry)
            if _answers(known) != _answers(entry):
                how = f"with other {_differing(known, entry, documents)}"
                faults.append(_twice(known, entry, how))
            elif known.identity and entry.identity and known.identity != entry.identity:
                faults.append(_twice(known, entry, "by different weights"))
    faults += _other_utterances(entries.values(), documents)
    raise_all(faults)
    if not entries:
        raise UnreadableFile(f"{named([str(p) for p in paths])} hold no scores.", "Run eval -o.")
    scoring = _scoring_of(documents)
    rescored, normalised = _rescored(list(entries.values()), documents, scoring)
    every = tuple(entry for entry in rescored if not entry.record.silent)
    silent = tuple(entry for entry in rescored if entry.record.silent)
    systems: dict[str, dict[str, dict[Key, Entry]]] = {}
    for entry in every:
        systems.setdefault(entry.system, {}).setdefault(entry.run, {})[entry.key] = entry
    partial = _partial(documents)
    few = few_blocks([entry.record for entry in every])
    notes = (
        *_mixed_settings(documents), *_same_weights(systems), *_flawed(systems),
        *_leaks(entries.values()), *normalised,
        *(f"{name} is not whole: {words}." for name, words in partial.items()),
        *([few] if few else []),
    )  # fmt: skip
    rows = tuple(rows_of(systems))
    suites = [document.suite for document in documents.values() if document.suite]
    scored = {entry.key: entry.record.metric for entry in every}
    figures = dict.fromkeys(figure for suite in suites for figure in suite.published)
    return Results(
        tuple(documents), every, systems, rows, scoring, partial, notes,
        published_for(figures, scored, scoring),
        tuple(dict.fromkeys(name for suite in suites for name in suite.retention)),
        {name: split for each in documents.values() for name, split in each.splits.items()},
        silent,
        {record.dataset: each.heard for each in reversed(documents.values()) for record in each.records},
    )  # fmt: skip


def _scoring_of(documents: Mapping[Path, StoredResults]) -> Scoring:
    """Return the scoring of the first file, with the sets that a suite gave a normalisation of their own.

    Of a set in several files, the first of them decides.
    """
    first = next(iter(documents.values())).scoring
    own: dict[str, str] = {}
    for document in documents.values():
        explicit = document.suite.sets if document.suite else ()
        for name in dict.fromkeys(record.dataset for record in document.records):
            how = (
                document.scoring.of(name).normalisation if name in explicit else first.normalisation
            )
            own.setdefault(name, how)
    apart = {name: how for name, how in own.items() if how != first.normalisation}
    return replace(first, sets=tuple(apart.items()))


def _rescored(
    entries: Sequence[Entry], documents: Mapping[Path, StoredResults], scoring: Scoring
) -> tuple[tuple[Entry, ...], list[str]]:
    """Rescore entries of another normalisation, or without an interval.

    Returns:
        The entries, and a note for each other normalisation.
    """
    rescored = []
    others: dict[str, dict[str, None]] = {}
    for entry in entries:
        signature, language = metric_of(entry.record).signature, entry.record.language
        stored, wanted = (how.of(entry.key[0]) for how in (documents[entry.file].scoring, scoring))
        other = signature(language, stored) != signature(language, wanted)
        if other:
            others.setdefault(stored.normalisation, {})[str(entry.file)] = None
        if other or not entry.record.blocks:
            entry = replace(entry, record=score(entry.record.rows, scoring))
        rescored.append(entry)
    notes = [
        f"{_files(list(files))}: scored with normalisation {how}, and rescored here with "
        f"{scoring.normalisation}, that of the first file."
        for how, files in others.items()
    ]
    return tuple(rescored), notes


def _partial(documents: Mapping[Path, StoredResults]) -> dict[str, str]:
    """Return data set -> how much of it was not scored, in words, as far as eval recorded it."""
    parts: dict[str, list[str]] = {}
    for document in documents.values():
        for name, reasons in document.dropped.items():
            lacking = {why: count for why, count in reasons.items() if why not in NOT_ASKED_FOR}
            if lacking:
                words = ", ".join(f"{count} {reason}" for reason, count in lacking.items())
                parts.setdefault(name, []).append(
                    f"{sum(lacking.values())} rows were skipped ({words})"
                )
        for name, conditions in document.selected.items():
            parts.setdefault(name, []).append(f"only rows with {' and '.join(conditions)}")
        for name, (done, of) in document.partial.items():
            parts.setdefault(name, []).append(f"{done} of {of} utterances were scored")
    return {name: "; ".join(dict.fromkeys(words)) for name, words in parts.items()}


def _entries(path: Path, stored: StoredResults, runs: bool) -> Iterable[Entry]:
    for record in stored.records:
        if record.metric != metric_of(record).name:
            raise UnreadableFile(
                f"{path} holds a score of {record.language} {record.task} by {record.metric!r:.40}.",
                "Score again with `lorsmerge eval -o`.",
            )
        system, run = system_and_run(record.model, runs)
        yield Entry(
            path, system, run, record, stored.identities.get(record.model, ""),
            origin_of(stored.made_from.get(record.model, {})),
        )  # fmt: skip


def _answers(entry: Entry) -> list[tuple[str, str, str]]:
    return [(row.id, row.reference, row.hypothesis) for row in entry.record.rows]


def _described(entry: Entry) -> str:
    return " ".join((repr(entry.record.model), "on", *entry.key))


def _selection(entry: Entry, documents: Mapping[Path, StoredResults]) -> str:
    """Return what the rows were chosen by: ` with accent=balear`; "" for a set that is whole."""
    conditions = documents[entry.file].selected.get(entry.record.dataset)
    return f" with {' and '.join(conditions)}" if conditions else ""


def _differing(known: Entry, entry: Entry, documents: Mapping[Path, StoredResults]) -> str:
    """Return in words what differs between two entries of one name."""
    chosen = [_selection(each, documents) for each in (known, entry)]
    if chosen[0] == chosen[1]:
        return "answers"
    return f"rows ({' and '.join(c.strip() or 'all' for c in chosen)})"


def _twice(known: Entry, entry: Entry, how: str) -> Mismatch:
    return Mismatch(
        f"{_described(entry)} is in {known.file} and in {entry.file} {how}.",
        f"Give one of the files alone, or name the models apart: {entry.system}2, or for runs that are to be "
        f"averaged {entry.system}{RUN_MARK}seed0 and {entry.system}{RUN_MARK}seed1.",
    )


def _other_utterances(
    entries: Iterable[Entry], documents: Mapping[Path, StoredResults]
) -> list[LorsmergeError]:
    """Return a fault for each column whose systems were not scored on the same utterances."""
    faults: dict[Key, LorsmergeError] = {}
    first: dict[Key, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.key, entry)
        rows, others = (
            [(row.id, row.reference) for row in each.record.rows] for each in (other, entry)
        )
        if rows != others and entry.key not in faults:
            faults[entry.key] = Mismatch(
                f"{_described(other)} ({len(rows)} utterances{_selection(other, documents)}, {other.file}) and "
                f"{_described(entry)} ({len(others)}{_selection(entry, documents)}, {entry.file}) were not scored on the "
                "same utterances.",
                "Score both on one test set, or name the test sets apart with eval --data NAME=PATH.",
            )
    return list(faults.values())


def _same_weights(systems: Mapping[str, Runs]) -> Iterable[str]:
    """Yield a note for runs of a system that are one model, whose spread tells nothing."""
    for system, runs in systems.items():
        models: dict[str, list[str]] = {}
        for run, entries in runs.items():
            for identity in dict.fromkeys(entry.identity for entry in entries.values()):
                models.setdefault(identity, []).append(run)
        for identity, names in models.items():
            if identity and len(names) > 1:
                yield (
                    f"Runs {', '.join(names)} of {system} have the same weights: they count as "
                    f"{len(names)} models in its mean and spread, and are one."
                )


def _flawed(systems: Mapping[str, Runs]) -> Iterable[str]:
    """Yield a note for systems with hypotheses that a limit of tokens ended, or that loop."""
    for system, runs in systems.items():
        records = [entry.record for entries in runs.values() for entry in entries.values()]
        parts = [
            f"{count} {flaw.note}"
            for key, flaw in FLAWS.items()
            if (count := sum(record.details.get(key) or 0 for record in records))
        ]
        if parts:
            whole = sum(len(record.rows) for record in records)
            listed = ", and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
            yield f"Of {system}'s {whole} hypotheses {listed}."


def _leaks(entries: Iterable[Entry]) -> Iterable[str]:
    """Yield notes on systems that were trained on utterances or sentences they are scored on.

    Systems of which the same is to be said share a note. Many test sets share speakers with training data, and `eval` warns of that.
    """
    leaks: dict[tuple[str, str], dict[Key, Shared]] = {}
    for entry in entries:
        for shared in entry.record.leakage or ():
            if shared.kind != "speakers":
                leaks.setdefault((shared.kind, entry.system), {}).setdefault(entry.key, shared)
    systems: dict[str, list[str]] = {}
    for (kind, system), of_sets in leaks.items():
        sets = list(of_sets.values())
        sources = dict.fromkeys(source for shared in sets for source in shared.sources)
        whole = Shared(
            kind, sum(shared.count for shared in sets), sum(shared.of for shared in sets),
            all(shared.complete for shared in sets), tuple(sources),
        )  # fmt: skip
        note = whole.warning(name=f"{len(sets)} of its test sets")
        systems.setdefault(note, []).append(system)
    for note, names in systems.items():
        yield f"{', '.join(names)}: {note}"


def _mixed_settings(documents: Mapping[Path, StoredResults]) -> Iterable[str]:
    """Yield a note for everything that scores depend on and that differs between files."""
    seen: dict[str, dict[str, list[str]]] = {}
    for path, document in documents.items():
        decoding = document.decoding
        settings = {"lorsmerge": document.lorsmerge, **document.versions}
        if decoding is None:
            ways = " and ".join(dict.fromkeys(filter(None, document.decoded.values())))
            settings["decoding"] = f"{ways or 'not recorded'} (eval --score-only)"
        else:
            settings["decoding"] = "recorded"
            settings |= {"engine": DEFAULT}  # which is not recorded
            settings |= {key: value for key, value in decoding.items() if key != "batch_size"}
        for key, value in settings.items():
            seen.setdefault(key, {}).setdefault(json.dumps(value), []).append(str(path))
    for key, values in seen.items():
        if len(values) > 1:
            parts = [f"{_short(value)} in {_files(files)}" for value, files in values.items()]
            yield f"Mixed settings: {key} is {'; '.join(parts)}."


def _short(value: str) -> str:
    """Return a value as a note has it, a list of suppressed tokens by its length."""
    loaded = json.loads(value)
    return f"a list of {len(loaded)}" if isinstance(loaded, list) else str(loaded)


def _files(files: Sequence[str]) -> str:
    shown = ", ".join(files[:3])
    return shown if len(files) <= 3 else f"{shown} and {len(files) - 3} more"
