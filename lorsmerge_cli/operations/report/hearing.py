"""What recordings tell of systems beside scores: timestamps, languages, and words where nothing is said."""

from __future__ import annotations

from collections import Counter

from lorsmerge_cli.metrics.flaws import Invented
from lorsmerge_cli.metrics.timestamps import COLLAR, Boundaries, intervals
from lorsmerge_cli.operations.report.entries import Row
from lorsmerge_cli.operations.report.numbers import number, with_error
from lorsmerge_cli.operations.report.tables import Cell, Table, TableRow, Tables
from lorsmerge_cli.results.records import Record


def hearing_tables(tables: Tables) -> list[Table]:
    """Return the tables of timestamps, identified languages and invented words, where results have such."""
    return [*_timestamps(tables), *_languages(tables), *_silence(tables)]


def _timestamps(tables: Tables) -> list[Table]:
    """Return how near each system's segments are to the references', over all its test sets and runs."""
    found: dict[Row, list[Record]] = {}
    for row in tables.rows:
        for entry in row.entries:
            if entry.record.details.get("timestamps"):
                found.setdefault(row, []).append(entry.record)
    if not found:
        return []
    rows = []
    for row, records in found.items():
        own = sum((Boundaries(**each.details["timestamps"]) for each in records), Boundaries())
        error, share = intervals([heard for each in records for heard in each.rows])
        cells = [str(n) for n in (own.recordings, own.segments, own.heard, own.matched)]
        cells += [
            with_error(own.error, error.standard_error, decimals=3),
            with_error(own.share, share.standard_error),
        ]
        rows.append(tables.line(row, [*map(Cell, cells)]))
    heads = ("recordings", "segments", "heard", "matched", "error s ↓", f"within {COLLAR:g} s % ↑")
    note = (
        "Segments heard are matched to those of the references one to one, in order and by overlap in "
        "time. Error: mean absolute distance of the boundaries of matched ones. Within: segments of the "
        "references both of whose boundaries are that near; those without a match count as missed. "
        "±: standard error over speakers, or over recordings where no speaker is known."
    )
    return [Table("timestamps", "Timestamps", note, tuple((h, "") for h in heads), tuple(rows))]


def _languages(tables: Tables) -> list[Table]:
    """Return which languages each system identified in which that were spoken."""
    heard: dict[tuple[Row, str], Counter[str]] = {}
    for row in tables.rows:
        for entry in row.entries:
            if counts := entry.record.details.get("heard_as"):
                heard.setdefault((row, entry.key[1]), Counter()).update(counts)
    if not heard:
        return []
    spoken = sorted({language for _, language in heard})
    others = sorted({code for counts in heard.values() for code in counts} - set(spoken))
    rows = []
    for row in dict.fromkeys(row for row, _ in heard):
        own = {language: heard[row, language] for language in spoken if (row, language) in heard}
        right = sum(counts[language] for language, counts in own.items())
        every = sum((counts for counts in own.values()), Counter[str]())
        rows.append((tables.label(row), False, _cells(right, every, (*spoken, *others))))
        rows += [
            (f"{language} spoken", True, _cells(counts[language], counts, (*spoken, *others)))
            for language, counts in own.items()
        ]
    heads = [("utterances", ""), ("identified % ↑", "")]
    heads += [(code, "identified as") for code in (*spoken, *others)]
    note = (
        "Where eval had --language auto: utterances by the language that was identified, over all test "
        "sets and runs of a system; indented below it, those in which one language is spoken."
    )
    return [Table("languages", "Language identification", note, tuple(heads), tuple(rows))]


def _silence(tables: Tables) -> list[Table]:
    """Return what each system wrote in test sets where nothing is said, over its runs."""
    found: dict[str, dict[str, Invented]] = {}
    for entry in tables.results.silent:
        own = found.setdefault(entry.system, {})
        called = " ".join(entry.key[:2])
        own[called] = own.get(called, Invented()) + Invented.of(entry.record.rows)
    rows: list[TableRow] = []
    for system, of_sets in found.items():
        whole = sum(of_sets.values(), Invented())
        rows.append((tables.name(system), False, _invented(whole)))
        if len(of_sets) > 1:
            rows += [(called, True, _invented(each)) for called, each in sorted(of_sets.items())]
    if not rows:
        return []
    heads = ("utterances", "minutes", "with words", "words", "words a minute ↓")
    note = (
        "Test sets whose references have no words: they have no score, and are in no other table."
    )
    return [
        Table(
            "silence",
            "Words where nothing is said",
            note,
            tuple((h, "") for h in heads),
            tuple(rows),
        )
    ]


def _invented(found: Invented) -> tuple[Cell, ...]:
    texts = (
        str(found.utterances),
        f"{found.seconds / 60:.1f}",
        str(found.invented),
        str(found.words),
    )
    return tuple(map(Cell, (*texts, number(found.rate))))


def _cells(right: int, counts: Counter[str], codes: tuple[str, ...]) -> tuple[Cell, ...]:
    total = counts.total()
    return tuple(
        map(Cell, (str(total), number(100 * right / total), *(str(counts[c]) for c in codes)))
    )
