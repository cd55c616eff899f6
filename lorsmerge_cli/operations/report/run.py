"""A report: the paper's tables and figures from results files, in a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

from lorsmerge_cli.errors import raise_all
from lorsmerge_cli.inputs import FilePath, path_of, several
from lorsmerge_cli.operations.report.between import between as utterances_between
from lorsmerge_cli.operations.report.entries import Row, mean_hours
from lorsmerge_cli.operations.report.figures import draw, figures_of
from lorsmerge_cli.operations.report.gains import gain_tables, scales_of
from lorsmerge_cli.operations.report.groups import group_tables
from lorsmerge_cli.operations.report.hearing import hearing_tables
from lorsmerge_cli.operations.report.numbers import NONE, setting
from lorsmerge_cli.operations.report.pages import Page, Picture, write_pages
from lorsmerge_cli.operations.report.results import read_results
from lorsmerge_cli.operations.report.roles import (
    Paper,
    Roles,
    check_systems,
    find_roles,
    read_paper,
)
from lorsmerge_cli.operations.report.scores import average_score
from lorsmerge_cli.operations.report.tables import Cell, Table, Tables
from lorsmerge_cli.outputs import atomic_folder, check_output
from lorsmerge_cli.pictures import can_draw
from lorsmerge_cli.quoting import json_escaped
from lorsmerge_cli.results.records import blocks_in_words, finite
from lorsmerge_cli.usage import Named, named_data
from lorsmerge_cli.version import __version__

SIZE = 4 << 20  # bytes a report takes at most, or about that


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        output: the folder.
        files: in it.
        tables: with the text of their cells.
        notes: caveats of the results, which the report has too.
        warnings: of the report itself: missing figures or letters.
        document: of report.json.
    """

    output: Path
    files: tuple[str, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    document: dict[str, Any]


def report(
    results: Sequence[FilePath] | FilePath,
    output: FilePath,
    *,
    title: str = "Merged models",
    base: str | None = None,
    finetuned: str | None = None,
    against: str | None = None,
    controls: Mapping[str, str] | None = None,
    held_out: Sequence[str] | str = (),
    retention: Sequence[str] | str = (),
    runs: bool = False,
    tuned: Sequence[str] | str = (),
    paper: FilePath | None = None,
    between: tuple[str, str] | None = None,
    data: Named = (),
    force: bool = False,
) -> Report:
    """Read results files, and write tables and figures.

    Args:
        results: results files that `evaluate` wrote.
        output: the folder to write.
        title: of the report.
        base: the system of the pretrained model; found out by default.
        finetuned: the system of the fine-tunes; found out by default.
        against: the system to compare with; task arithmetic by default.
        controls: system -> task arithmetic of the same step norm; found out by default.
        held_out: data sets that no delta was made for.
        retention: data sets that tell what was forgotten; those that a suite names by default, or all
            that a model was not made for.
        runs: take what follows the last colon of any model's name for a run to average over;
            without, `NAME:seedN` alone.
        tuned: systems whose lambda was chosen for each run.
        paper: a TOML file of published numbers to print beside the measured ones.
        between: two models, for a page of what got better and worse from the first to the second.
        data: test sets as `evaluate` had them, whose audio that page links to.
        force: replace a folder that exists.

    Raises:
        LorsmergeError: see the subclasses; nothing is written then.

    Example:
        >>> from lorsmerge_cli import evaluate
        >>> found = evaluate({"base": "base", "merged": "ca"}, "test.jsonl", "results.json", beam=1)
        >>> written = report("results.json", "report")
        >>> written.output, "report.md" in written.files
        (PosixPath('report'), True)
    """
    paths, output, paper = [Path(path) for path in several(results)], Path(output), path_of(paper)
    inputs = [*paths, *([paper] if paper else [])]
    raise_all(check_output(output, inputs=inputs, size=SIZE, force=force, folder=True))
    published = read_paper(paper) if paper else Paper()
    read = read_results(paths, runs=runs)
    given = Roles(
        base,
        finetuned,
        against,
        controls or {},
        several(held_out),
        several(tuned),
        retention=several(retention),
    )
    roles = find_roles(read, given)
    check_systems(read, roles)
    tables = Tables(read, roles, published)
    by_group, group_numbers = group_tables(tables)
    every = (
        tables.scores(), *gain_tables(tables), *by_group, *hearing_tables(tables), _systems(tables),
    )  # fmt: skip
    made = tuple(table for table in every if table.heads)
    pictures, warnings = _pictures(tables)
    page = Page(
        title, _about(tables), read.notes, made, tuple(pictures), tuple(map(str, read.files))
    )
    compared = between and utterances_between(read, between, named_data(data), output)
    document = _document(tables, made) | {"groups": [finite(each) for each in group_numbers]}
    with atomic_folder(output, force=force) as partial:
        files = write_pages(partial, page, compared or None)
        text = json_escaped(json.dumps(document, indent=2, ensure_ascii=False)) + "\n"
        (partial / "report.json").write_text(text, encoding="utf-8")
    return Report(output, (*files, "report.json"), made, read.notes, tuple(warnings), document)


def _pictures(tables: Tables) -> tuple[list[Picture], list[str]]:
    """Return the figures as drawn, and warnings of what is missing in them."""
    figures = figures_of(tables)
    if figures and not can_draw():
        return [], [
            f"{len(figures)} figures are missing, because matplotlib is not installed: "
            "`pip install 'lorsmerge[plot]'`."
        ]
    with catch_warnings(record=True) as caught:
        simplefilter("always")
        pictures = [draw(figure) for figure in figures]
    boxes = any("missing from font" in str(warning.message) for warning in caught)
    return pictures, (
        ["The figures' font lacks letters of some systems' names, and has boxes."] if boxes else []
    )


def _about(tables: Tables) -> tuple[str, ...]:
    """Return how the scores were made, in words."""
    results = tables.results
    if not results.entries:
        return (
            f"lorsmerge {__version__}",
            "Nothing is said in these test sets, so there are no scores.",
        )
    sizes = [len(entry.record.rows) for entry in results.entries]
    each = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    signatures = dict.fromkeys(entry.record.reported.signature for entry in results.entries)
    about = (
        f"Systems: {len(results.systems)}; {each} utterances for each score; errors, intervals and "
        f"paired tests over {blocks_in_words([entry.record for entry in results.entries])}.",
        f"lorsmerge {__version__}; {'; '.join(signatures)}",
    )
    skipped = dict.fromkeys(f"{language} {task}" for _, language, task in tables.of_the_base_alone)
    if not skipped:
        return about
    base = tables.name(tables.roles.base or "")
    return (*about, f"Not in the tables, as only {base} was scored on it: {', '.join(skipped)}.")


def _systems(tables: Tables) -> Table:
    """Return how each system was made, as far as eval recorded it."""
    rows = []
    for row in tables.rows:
        models = {entry.identity for entry in row.entries if entry.identity}
        made_for = {pair for entry in row.entries for pair in entry.origin.covers or ()}
        kinds = {entry.origin.kind: entry.origin.method for entry in row.entries}
        words = [
            ", ".join(f"{kind} {method}".strip() for kind, method in kinds.items()) or NONE,
            str(len(models) or NONE),
            ", ".join(f"{language} {task}" for language, task in sorted(made_for)) or NONE,
            *map(setting, (mean_hours(row.entries), row.settings.svp, row.settings.mp)),
            scales_of(row.runs),
        ]  # fmt: skip
        rows.append((tables.label(row), False, tuple(map(Cell, words))))
    heads = ("made by", "models", "made for", "hours each", "SVP", "MP", "lambda")
    note = (
        "From lorsmerge.json and run.json of the models. Ratios are what is kept; own: deltas "
        "or runs differ."
    )
    return Table("systems", "The systems", note, tuple((head, "") for head in heads), tuple(rows))


def _document(tables: Tables, made: Sequence[Table]) -> dict[str, Any]:
    """Return everything a report says, as numbers and as the text of its tables."""
    roles = tables.roles
    return {
        "lorsmerge": __version__,
        "files": [str(path) for path in tables.results.files],
        "notes": list(tables.results.notes),
        "roles": {
            "base": roles.base, "finetuned": roles.finetuned, "against": roles.against,
            "controls": dict(roles.controls), "held_out": sorted(set(roles.held_out)),
            "retention": list(roles.retention),
        },
        "scores": [score for row in tables.rows for score in _numbers(tables, row)],
        "tables": [asdict(table) for table in made],
    }  # fmt: skip


def _numbers(tables: Tables, row: Row) -> list[dict[str, Any]]:
    """Return a row's scores over its runs, with the paired difference from the system compared with."""
    scores = []
    for key in dict.fromkeys(key for run in row.runs.values() for key in run):
        score = average_score(row.runs, [key])
        test = tables.tests.difference(row.runs, tables.others(row), [key])
        scores.append(
            {"system": row.label, "dataset": key[0], "language": key[1], "task": key[2]}
            | {"blocks": next(run[key].record.blocks for run in row.runs.values() if key in run)}
            | finite(asdict(score))
            | {"against": None if test is None else finite(asdict(test))}
        )
    for task in tables.tasks:
        mean = average_score(tables.made_for(row, task), tables.columns(task))
        if not math.isnan(mean.value):
            scores.append({"system": row.label, "language": "average", "task": task}
                         | finite(asdict(mean)))  # fmt: skip
    return scores
