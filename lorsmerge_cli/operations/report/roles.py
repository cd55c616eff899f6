"""Which system of a report is the base, the fine-tunes, a control; and what the paper has for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorsmerge_cli.data.languages import TASKS
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UnreadableFile, UsageFault, raise_all
from lorsmerge_cli.inputs import read_toml
from lorsmerge_cli.operations.report.entries import Entry, Row
from lorsmerge_cli.operations.report.numbers import number
from lorsmerge_cli.operations.report.results import Results
from lorsmerge_cli.quoting import command
from lorsmerge_cli.usage import PAPER

AVERAGE = "average"  # the column of a plain mean over languages
CONTROL = "ta_as_"  # before the name of a pruned system: task arithmetic of the same norm
BASE_NAMES, FINETUNED_NAMES = ("pretrained", "base"), ("finetuned", "finetune")


@dataclass(frozen=True)
class Paper:
    """Published numbers: system -> its name there; (task, system) -> language or average -> number."""

    about: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[tuple[str, str], Mapping[str, float]] = field(default_factory=dict)

    def beside(self, row: Row, task: str, column: str) -> str:
        """The paper's number for a cell; empty for none, and where a system has several rows."""
        own = self.scores.get((task, row.system), {}) if row.label == row.system else {}
        found = own.get(column)
        if found is None:
            return ""
        return number(found) if column == AVERAGE else str(found)


@dataclass(frozen=True)
class Roles:
    """Which system is what.

    Attributes:
        base, finetuned, against: None where there is none.
        controls: pruned system -> task arithmetic of the same norm.
        held_out: data sets that no delta was made for, whatever their language.
    """

    base: str | None
    finetuned: str | None
    against: str | None
    controls: Mapping[str, str]
    held_out: frozenset[str]


def find_roles(
    results: Results,
    *,
    base: str | None,
    finetuned: str | None,
    against: str | None,
    controls: Mapping[str, str],
    held_out: Sequence[str],
) -> Roles:
    """Take the roles that are named, and find out the others.

    Raises:
        UsageFault: a name that no result has.
    """
    systems = results.systems
    faults: list[LorsmergeError] = []
    named = [("--base", base), ("--finetuned", finetuned), ("--against", against)]
    named += [("--control", name) for pair in controls.items() for name in pair]
    for option, name in named:
        if name is not None and name not in systems:
            faults.append(
                UsageFault(
                    f"{option}: no result is of {name!r}.", f"There are: {', '.join(systems)}."
                )
            )
    faults += [
        UsageFault(f"--control {name}={name}: a system cannot be its own control.", "Name another.")
        for name, control in controls.items()
        if name == control
    ]
    sets = list(dict.fromkeys(entry.record.dataset for entry in results.entries))
    for name in held_out:
        if name not in sets:
            faults.append(
                UsageFault(
                    f"--held-out: no result is on {name!r}.", f"There are: {', '.join(sets)}."
                )
            )
    raise_all(faults)
    found = {name: CONTROL + name for name in systems if CONTROL + name in systems}
    first_ta = next((e.system for e in results.entries if e.origin.method == "ta"), None)
    own = next((row.system for row in results.rows if all(map(_on_its_own, row.entries))), None)
    return Roles(
        base or _named(systems, BASE_NAMES) or _base_by_identity(results),
        finetuned or _named(systems, FINETUNED_NAMES) or own,
        against or _named(systems, ("ta",)) or first_ta or (systems[0] if systems[1:] else None),
        found | dict(controls),
        frozenset(held_out),
    )


def _named(systems: Sequence[str], wanted: Sequence[str]) -> str | None:
    return next((name for name in systems if name.lower() in wanted), None)


def _on_its_own(entry: Entry) -> bool:
    """Whether this is a fine-tune, scored on the one language and task it was trained on."""
    pair = entry.record.language, entry.record.task
    return entry.origin.kind == "finetune" and entry.origin.covers == frozenset({pair})


def _base_by_identity(results: Results) -> str | None:
    """The first system of what the others were made from."""
    bases = {entry.origin.base for entry in results.entries} - {""}
    return next((entry.system for entry in results.entries if entry.identity in bases), None)


def check_systems(results: Results, roles: Roles, tuned: Sequence[str]) -> None:
    """Check that what stands under one name, and may be averaged, is one system.

    Args:
        results, roles: of the report.
        tuned: systems whose lambda was chosen for each run.

    Raises:
        UsageFault: `tuned` names no system.
        Mismatch: models of one name have other weights, without being fine-tunes of other
            languages and tasks each; or models of one system have other methods or lambdas. A
            control's lambda is its run's own.
    """
    faults: list[LorsmergeError] = []
    for name in tuned:
        if name not in results.systems:
            faults.append(
                UsageFault(
                    f"--tuned: no result is of {name!r}.",
                    f"There are: {', '.join(results.systems)}.",
                )
            )
    for system in results.systems:
        for entries in results.runs(system).values():
            faults += _other_weights(list(entries.values()), system == roles.finetuned)
        rows = [row.entries for row in results.rows if row.system == system]
        faults += _other_settings([entry for row in rows for entry in row], "method")
        control = system in roles.controls.values() or system.startswith(CONTROL)
        if not control and system not in tuned:
            for row in rows:
                faults += _other_settings(row, "lambda")
    raise_all(faults)


def _other_weights(entries: Sequence[Entry], finetuned: bool) -> list[LorsmergeError]:
    """A fault where models of one name are not each made for, and scored on, something else."""
    models = {entry.identity: entry for entry in entries if entry.identity}
    covers = [entry.origin.covers for entry in models.values()]
    known = [pair for found in covers if found for pair in found]
    apart = all(covers) and len(known) == len(set(known))
    if finetuned or apart or len(models) < 2:
        return []
    one, other, *_ = models.values()
    return [
        Mismatch(
            f"{one.record.model!r} stands for different weights: {_told(one)} and {_told(other)}.",
            "Name the models apart with eval NAME=PATH; runs that are to be averaged are NAME:seed0, "
            "NAME:seed1.",
        )
    ]


def _other_settings(entries: Sequence[Entry], what: str) -> list[LorsmergeError]:
    """A fault where models that are one system differ in their method, or in lambda."""
    found: dict[object, Entry] = {}
    for entry in entries:
        origin = entry.origin
        value = f"{origin.kind} {origin.method}".strip() if what == "method" else origin.scale
        if value not in (None, ""):
            found.setdefault(value, entry)
    if len(found) < 2:
        return []
    one, other, *_ = found.values()
    tuned = f", or give {command('--tuned', one.system)} if it was chosen for each run"
    return [
        Mismatch(
            f"Models of {one.system!r} that would be averaged differ in {what}: {_told(one)} and "
            f"{_told(other)}.",
            f"Name them apart with eval NAME=PATH{tuned if what == 'lambda' else ''}.",
        )
    ]


def _told(entry: Entry) -> str:
    """A model, as a message names it."""
    origin = entry.origin
    scale = "" if origin.scale is None else f", lambda {origin.scale}"
    made = f" ({origin.kind} {origin.method}".rstrip() + f"{scale})" if origin.kind else ""
    return f"{entry.record.model!r} of {entry.file}{made}"


def read_paper(path: Path) -> Paper:
    """Published numbers from a TOML file.

    `about` says where they are from, `[names]` what the systems are called there, and `[asr.ta]`
    (task, system) holds a number for each language and for the `average`.

    Raises:
        UnreadableFile: it is no such file.
    """
    try:
        found = read_toml(path)
        scores = {
            (task, system): {column: float(value) for column, value in columns.items()}
            for task in TASKS
            for system, columns in found.get(task, {}).items()
        }
        unknown = found.keys() - {"about", "names", *TASKS}
        if unknown:
            raise ValueError(f"{sorted(unknown)[0]!r} is none of about, names, {', '.join(TASKS)}")
        names = {str(key): str(value) for key, value in found.get("names", {}).items()}
        return Paper(str(found.get("about", "published numbers")), names, scores)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UnreadableFile(
            f"{path} holds no published numbers ({error}).",
            PAPER,
        ) from None
