"""Roles of a report's systems (base, fine-tunes, controls), and the paper's numbers for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isclose
from pathlib import Path
from typing import Any

from lorsmerge_cli.core.methods import find_method, method_faults, method_of
from lorsmerge_cli.data.languages import TASKS
from lorsmerge_cli.errors import (
    LorsmergeError,
    Mismatch,
    UnreadableFile,
    UsageFault,
    did_you_mean,
    raise_all,
)
from lorsmerge_cli.inputs import read_toml
from lorsmerge_cli.operations.report.entries import Entry, Origin, Row
from lorsmerge_cli.operations.report.numbers import number
from lorsmerge_cli.operations.report.results import Results
from lorsmerge_cli.operations.report.scores import partners
from lorsmerge_cli.quoting import command
from lorsmerge_cli.usage import PAPER

AVERAGE = "average"  # the column of a plain mean over languages
CONTROL = "ta_as_"  # before the name of a system: task arithmetic of the same step norm
SAME_STEP = 1e-4  # between step norms: a merge finds its control's lambda to some roundings
BASE_NAMES, FINETUNED_NAMES = ("pretrained", "base"), ("finetuned", "finetune")


@dataclass(frozen=True)
class Paper:
    """Published numbers: system -> its name there; (task, system) -> language or average -> number."""

    about: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[tuple[str, str], Mapping[str, float]] = field(default_factory=dict)

    def beside(self, row: Row, task: str, column: str) -> str:
        """Return the paper's number for a cell; empty for none, or where a system has several rows."""
        published = self.scores.get((task, row.system), {}).get(column)
        if published is None or row.label != row.system:
            return ""
        return number(published) if column == AVERAGE else str(published)


@dataclass(frozen=True)
class Roles:
    """Which system is the base, the fine-tunes, a control.

    Attributes:
        base, finetuned, against: None where there is none, or before it was found out.
        controls: system -> task arithmetic of the same step norm.
        held_out: data sets that no delta was made for, whatever their language.
        tuned: systems whose lambda was chosen for each run.
        recorded: systems that were found to be controls by what eval recorded, not by their names.
        retention: data sets that tell what was forgotten, in languages and tasks that a model was not
            made for; all such data sets if empty.
    """

    base: str | None
    finetuned: str | None
    against: str | None
    controls: Mapping[str, str]
    held_out: Sequence[str]
    tuned: Sequence[str]
    recorded: Collection[str] = ()
    retention: Sequence[str] = ()

    def is_beside(self, system: str) -> bool:
        """Return whether a system stands below a merge as its control, and for nothing else."""
        return system in self.controls.values() and system != self.against

    def is_recorded(self, system: str) -> bool:
        """Return whether such a system's name does not say whose control it is."""
        return system in self.recorded and self.is_beside(system)


def find_roles(results: Results, given: Roles) -> Roles:
    """Find out the roles that are not given.

    Raises:
        UsageFault: a name that no result has.
    """
    systems = results.systems
    sets = list(dict.fromkeys(entry.record.dataset for entry in results.entries))
    asked = [
        name.strip()
        for text in given.retention
        for name in ([text] if text in sets else text.split(","))
    ]
    given = replace(given, retention=list(dict.fromkeys(filter(None, asked))))
    named = [("--base", given.base), ("--finetuned", given.finetuned), ("--against", given.against)]
    named += [("--control", name) for pair in given.controls.items() for name in pair]
    named += [("--tuned", name) for name in given.tuned]
    faults: list[LorsmergeError] = [
        UsageFault(f"{option}: no result is of {name!r}.", f"There are: {', '.join(systems)}.")
        for option, name in named
        if name is not None and name not in systems
    ]
    faults += [
        UsageFault(f"{option}: no result is on {name!r}.", did_you_mean(name, sets).strip())
        for option, names in (("--held-out", given.held_out), ("--retention", given.retention))
        for name in names
        if name not in sets
    ]
    faults += [
        UsageFault(f"--control {name}={name}: a system cannot be its own control.", "Name another.")
        for name, control in given.controls.items()
        if name == control
    ]
    raise_all(faults)
    named_controls = {name: CONTROL + name for name in systems if CONTROL + name in systems}
    named_controls |= given.controls
    controls = _recorded_controls(results) | named_controls
    recorded = {*controls.values()} - {*named_controls.values()}
    added_up = [e.system for e in results.entries if _adds_up(e.origin)]
    first_ta = next((name for name in added_up if name not in controls.values()), None)
    alone = next((row.system for row in results.rows if all(map(_on_its_own, row.entries))), None)
    bases = {entry.origin.base for entry in results.entries} - {""}
    by_identity = next((e.system for e in results.entries if e.identity in bases), None)
    return replace(
        given,
        base=given.base or _named(systems, BASE_NAMES) or by_identity,
        finetuned=given.finetuned or _named(systems, FINETUNED_NAMES) or alone,
        against=given.against
        or _named(systems, ("ta",))
        or first_ta
        or next(iter(added_up), None)
        or (systems[0] if systems[1:] else None),
        controls=controls,
        recorded=recorded,
        retention=given.retention or [name for name in results.retention if name in sets],
    )


def _recorded_controls(results: Results) -> dict[str, str]:
    """Return merge -> its control, by what eval recorded of both: deltas, method and step norm."""
    origins = {
        name: {run: {entry.origin for entry in entries.values()} for run, entries in runs.items()}
        for name, runs in results.runs.items()
    }
    added_up = [
        name for name, runs in origins.items() if all(map(_adds_up, set().union(*runs.values())))
    ]
    found: dict[str, str] = {}
    for name, runs in results.runs.items():
        for control in added_up:
            paired = partners(runs, results.runs[control])
            if (
                name not in (*added_up, *found)
                and paired.keys() == runs.keys()
                and all(
                    _is_control(made, entry.origin)
                    for run, others in paired.items()
                    for entry in others.values()
                    for made in origins[name][run]
                )
            ):
                found[name] = control
    return found


def _adds_up(origin: Origin) -> bool:
    """Return whether a model is task arithmetic."""
    return origin.kind == "merge" and origin.method == method_of(()) and not origin.coef


def _is_control(made: Origin, other: Origin) -> bool:
    """Return whether task arithmetic, `other`, is of a merge's deltas and takes a step as long."""
    if made.step_norm is None or other.step_norm is None or made.base != other.base:
        return False
    if not isclose(made.step_norm, other.step_norm, rel_tol=SAME_STEP):
        return False
    pruned = made.svp is not None or made.mp is not None  # maybe before: into other files
    like = made.covers == other.covers and len(made.deltas) == len(other.deltas)
    return (made.deltas == other.deltas or (pruned and like)) and not _is_a_sum(made)


def _is_a_sum(made: Origin) -> bool:
    """Return whether a merge adds deltas up as they are, as task arithmetic with another lambda."""
    known = not made.coef and not method_faults(made.method)
    return known and find_method(made.method).adds_up


def _named(systems: Sequence[str], names: Sequence[str]) -> str | None:
    return next((name for name in systems if name.lower() in names), None)


def _on_its_own(entry: Entry) -> bool:
    """Return whether this is a fine-tune, scored on the one language and task it was trained on."""
    pair = entry.record.language, entry.record.task
    return entry.origin.kind == "finetune" and entry.origin.covers == frozenset({pair})


def check_systems(results: Results, roles: Roles) -> None:
    """Check that models of one name, which may be averaged, are one system.

    Raises:
        Mismatch: models of one name have other weights, without being fine-tunes of other
            languages and tasks each; or models of one system have other methods or lambdas. A
            control's lambda is its run's own.
    """
    faults: list[LorsmergeError] = []
    for system, runs in results.runs.items():
        for entries in runs.values():
            models = {e.identity: e for e in entries.values() if e.identity}
            if system != roles.finetuned and not _made_apart(models.values()):
                faults += _differing(
                    f"{next(iter(models.values())).record.model!r} is the name of different weights",
                    models,
                    "Name the models apart with eval NAME=PATH; runs that are to be averaged are "
                    "NAME:seed0, NAME:seed1.",
                )
        apart = "Name them apart with eval NAME=PATH"
        averaged = f"Models of {system!r} that would be averaged"
        rows = [row.entries for row in results.rows if row.system == system]
        methods = {f"{e.origin.kind} {e.origin.method}".strip(): e for row in rows for e in row}
        methods.pop("", None)
        faults += _differing(f"{averaged} differ in method", methods, f"{apart}.")
        if system in (*roles.tuned, *roles.controls.values()) or system.startswith(CONTROL):
            continue
        tuned = f", or give {command('--tuned', system)} if it was chosen for each run."
        for row in rows:
            scales = {(e.origin.scale, e.origin.coef): e for e in row if e.origin.scale is not None}
            faults += _differing(f"{averaged} differ in lambda", scales, apart + tuned)
    raise_all(faults)


def _made_apart(models: Collection[Entry]) -> bool:
    """Return whether models are each made for other languages and tasks, as fine-tunes are."""
    covers = [entry.origin.covers for entry in models]
    pairs = [pair for covered in covers if covered for pair in covered]
    return all(covers) and len(pairs) == len(set(pairs))


def _differing(what: str, models: Mapping[Any, Entry], remedy: str) -> list[LorsmergeError]:
    """Return a fault where there are several values of what has to be one, with a model of each."""
    if len(models) < 2:
        return []
    one, other, *_ = models.values()
    return [Mismatch(f"{what}: {_described(one)} and {_described(other)}.", remedy)]


def _described(entry: Entry) -> str:
    """Return a model with its file, its method and lambda, for a message."""
    origin = entry.origin
    scale = "" if origin.scale is None else f", lambda {origin.scale}"
    made = f" ({origin.kind} {origin.method}".rstrip() + f"{scale})" if origin.kind else ""
    return f"{entry.record.model!r} of {entry.file}{made}"


def read_paper(path: Path) -> Paper:
    """Read published numbers from a TOML file.

    `about` says where they are from, `[names]` what the systems are called there, and `[asr.ta]`
    (task, system) holds a number for each language and for the `average`.

    Raises:
        UnreadableFile: the file holds something else.
    """
    try:
        document = read_toml(path)
        scores = {
            (task, system): {column: float(value) for column, value in columns.items()}
            for task in TASKS
            for system, columns in document.get(task, {}).items()
        }
        unknown = document.keys() - {"about", "names", *TASKS}
        if unknown:
            raise ValueError(f"{sorted(unknown)[0]!r} is none of about, names, {', '.join(TASKS)}")
        names = {str(key): str(value) for key, value in document.get("names", {}).items()}
        return Paper(str(document.get("about", "published numbers")), names, scores)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UnreadableFile(f"{path} holds no published numbers ({error}).", PAPER) from None
