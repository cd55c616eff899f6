"""Results files of `eval`, put together and checked: what `report` draws its tables from.

A model's name is a system's, or `SYSTEM:seedN` where a system is several models that are to be
averaged; with --runs any `SYSTEM:RUN`, as combinations of languages are (`lors:ca+de`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorsmerge_cli.data.leakage import Shared
from lorsmerge_cli.data.utterance import NOT_ASKED_FOR
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UnreadableFile, named, raise_all
from lorsmerge_cli.metrics.metric import Scoring
from lorsmerge_cli.operations.report.entries import (
    RUN_MARK,
    Entry,
    Key,
    Row,
    origin_of,
    rows_of,
    system_and_run,
)
from lorsmerge_cli.results.document import StoredResults
from lorsmerge_cli.results.document import read_results as read_document
from lorsmerge_cli.results.records import Record, few_blocks, metric_of, score


@dataclass(frozen=True)
class Results:
    """Everything that the files hold.

    Attributes:
        files: as given.
        entries: each (system, run, data set, language, task) once.
        rows: of tables, in order of appearance.
        scoring: of the first file; all scores and paired tests are made under it.
        partial: data set -> in words, what of it was not scored.
        notes: what a reader of a table has to know.
    """

    files: tuple[Path, ...]
    entries: tuple[Entry, ...]
    rows: tuple[Row, ...]
    scoring: Scoring
    partial: Mapping[str, str]
    notes: tuple[str, ...]

    def runs(self, system: str) -> dict[str, dict[Key, Entry]]:
        """Run -> data set, language and task -> record, of one system whatever its settings."""
        found: dict[str, dict[Key, Entry]] = {}
        for entry in self.entries:
            if entry.system == system:
                found.setdefault(entry.run, {})[entry.key] = entry
        return found

    @property
    def systems(self) -> list[str]:
        return list(dict.fromkeys(row.system for row in self.rows))


def read_results(paths: Sequence[Path], *, runs: bool = False) -> Results:
    """Read results files and check that they can stand in one table.

    Args:
        paths: of `eval -o`.
        runs: take what follows the last colon of any model's name for a run.

    Raises:
        UnreadableFile: a file that `eval -o` did not write.
        Mismatch: a model scored twice with other answers, or systems on other utterances.
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
                faults.append(_twice(known, entry))
    faults += _other_utterances(entries.values())
    raise_all(faults)
    if not entries:
        raise UnreadableFile(f"{named([str(p) for p in paths])} hold no scores.", "Run eval -o.")
    scoring = next(iter(documents.values())).scoring
    every = tuple(_rescored(entry, documents[entry.file], scoring) for entry in entries.values())
    partial = _partial(documents)
    notes = (
        *_mixed_settings(documents), *_same_weights(every), *_flawed(every), *_leaks(entries.values()),
        *_normalised(entries.values(), documents, scoring),
        *(f"{name} is not whole: {words}." for name, words in partial.items()),
    )  # fmt: skip
    if few := few_blocks([entry.record for entry in every]):
        notes = (*notes, few)
    return Results(tuple(documents), every, tuple(rows_of(every)), scoring, partial, notes)


def _rescored(entry: Entry, stored: StoredResults, scoring: Scoring) -> Entry:
    """Return an entry with its score of another normalisation, or with an interval that it lacks."""
    record = entry.record
    if record.blocks and not _otherwise(entry, stored, scoring):
        return entry
    return replace(entry, record=score(record.rows, scoring))


def _otherwise(entry: Entry, stored: StoredResults, scoring: Scoring) -> bool:
    """Return whether a score depends on what two scorings differ in."""
    signature, language = metric_of(entry.record).signature, entry.record.language
    return signature(language, stored.scoring) != signature(language, scoring)


def _normalised(
    entries: Iterable[Entry], documents: Mapping[Path, StoredResults], scoring: Scoring
) -> Iterable[str]:
    """A note on files with scores of another normalisation than the first file's."""
    others: dict[str, dict[str, None]] = {}
    for entry in entries:
        document = documents[entry.file]
        if _otherwise(entry, document, scoring):
            others.setdefault(document.scoring.normalisation, {})[str(entry.file)] = None
    for how, files in others.items():
        yield (
            f"{_files(list(files))}: scored with normalisation {how}, and rescored here with "
            f"{scoring.normalisation}, that of the first file."
        )


def _partial(documents: Mapping[Path, StoredResults]) -> dict[str, str]:
    """Data set -> what of it was not scored, as far as eval recorded it."""
    found: dict[str, list[str]] = {}
    for document in documents.values():
        for name, reasons in document.dropped.items():
            lacking = {why: count for why, count in reasons.items() if why not in NOT_ASKED_FOR}
            if lacking:
                words = ", ".join(f"{count} {reason}" for reason, count in lacking.items())
                found.setdefault(name, []).append(
                    f"{sum(lacking.values())} rows were skipped ({words})"
                )
        for name, (done, of) in document.partial.items():
            found.setdefault(name, []).append(f"{done} of {of} utterances were scored")
    return {name: "; ".join(dict.fromkeys(words)) for name, words in found.items()}


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


def _full(entry: Entry) -> str:
    return " ".join((repr(entry.record.model), "on", *entry.key))


def _twice(known: Entry, entry: Entry) -> Mismatch:
    return Mismatch(
        f"{_full(entry)} is in {known.file} and in {entry.file} with other answers.",
        f"Leave one file out, or name the models apart: {entry.system}2, or for runs that are to be "
        f"averaged {entry.system}{RUN_MARK}seed0 and {entry.system}{RUN_MARK}seed1.",
    )


def _other_utterances(entries: Iterable[Entry]) -> list[LorsmergeError]:
    """A fault for each column whose systems were not scored on the same utterances."""
    faults: dict[Key, LorsmergeError] = {}
    first: dict[Key, Entry] = {}
    for entry in entries:
        known = first.setdefault(entry.key, entry)
        rows, others = known.record.rows, entry.record.rows
        same = len(rows) == len(others) and all(
            (a.id, a.reference) == (b.id, b.reference) for a, b in zip(rows, others, strict=True)
        )
        if not same and entry.key not in faults:
            faults[entry.key] = Mismatch(
                f"{_full(known)} ({len(rows)} utterances, {known.file}) and {_full(entry)} "
                f"({len(others)}, {entry.file}) were not scored on the same utterances.",
                "Score both on one test set, or give the test sets names of their own with "
                "eval --data NAME=PATH.",
            )
    return list(faults.values())


def _same_weights(entries: Iterable[Entry]) -> Iterable[str]:
    """A note for runs of a system that are one model, whose spread would be taken for something."""
    runs: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        found = runs.setdefault((entry.system, entry.identity), [])
        if entry.run not in found:
            found.append(entry.run)
    for (system, identity), names in runs.items():
        if identity and len(names) > 1:
            yield (
                f"Runs {', '.join(names)} of {system} have the same weights: they count as "
                f"{len(names)} models in its mean and spread, and are one."
            )


def _flawed(entries: Iterable[Entry]) -> Iterable[str]:
    """A note for systems with hypotheses that a limit of tokens ended, or that repeat themselves."""
    found: dict[str, list[Record]] = {}
    for entry in entries:
        found.setdefault(entry.system, []).append(entry.record)
    for system, records in found.items():
        parts = [
            f"{count} {what}"
            for key, what in (
                ("cut", "were ended by the limit of tokens"),
                ("looping", "repeat themselves"),
            )
            if (count := sum(record.details.get(key) or 0 for record in records))
        ]
        if parts:
            whole = sum(len(record.rows) for record in records)
            yield f"Of {system}'s {whole} hypotheses {', and '.join(parts)}."


def _leaks(entries: Iterable[Entry]) -> Iterable[str]:
    """A note for systems that were trained on some of the utterances or sentences they are scored on.

    That speakers are shared is known of many test sets, and is left to `eval`.
    """
    found: dict[tuple[str, str], dict[Key, Shared]] = {}
    for entry in entries:
        for shared in entry.record.leakage or ():
            if shared.kind != "speakers":
                found.setdefault((shared.kind, entry.system), {}).setdefault(entry.key, shared)
    for (kind, system), of_sets in found.items():
        each = list(of_sets.values())
        sources = dict.fromkeys(source for shared in each for source in shared.sources)
        whole = Shared(
            kind, sum(shared.count for shared in each), sum(shared.of for shared in each),
            all(shared.complete for shared in each), tuple(sources),
        )  # fmt: skip
        yield f"{system}: {whole.warning(name=f'{len(each)} of its test sets')}"


def _mixed_settings(documents: Mapping[Path, StoredResults]) -> Iterable[str]:
    """A note for everything that scores depend on and that differs between files."""
    seen: dict[str, dict[str, list[str]]] = {}
    for path, document in documents.items():
        decoding = document.decoding
        found = {"lorsmerge": document.lorsmerge, **document.versions}
        if decoding is None:
            found["decoding"] = "not recorded (eval --score-only)"
        else:
            found["decoding"] = "recorded"
            found |= {key: value for key, value in decoding.items() if key != "batch_size"}
        for key, value in found.items():
            seen.setdefault(key, {}).setdefault(json.dumps(value), []).append(str(path))
    for key, values in seen.items():
        if len(values) > 1:
            parts = [f"{_short(value)} in {_files(files)}" for value, files in values.items()]
            yield f"Mixed settings: {key} is {'; '.join(parts)}."


def _short(value: str) -> str:
    """Lists of suppressed tokens by their length."""
    found = json.loads(value)
    return f"a list of {len(found)}" if isinstance(found, list) else str(found)


def _files(files: Sequence[str]) -> str:
    shown = ", ".join(files[:3])
    return shown if len(files) <= 3 else f"{shown} and {len(files) - 3} more"
