"""Records of results files, how their models were made, and the rows of tables they form."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lorsmerge_cli.operations.report.numbers import setting
from lorsmerge_cli.results.records import Record

RUN_MARK = ":"
SEED = re.compile(r"seed\d+")  # runs of such names are one row, whatever their settings
SEEDED = re.compile(rf"(.+){RUN_MARK}(seed\d+(?:-.*)?)")
OWN = "own"  # in place of a ratio that differs between deltas
SAME_HOURS = 1.25  # sizes of data that differ by less than this factor count as one

T = TypeVar("T")
Key = tuple[str, str, str]  # dataset, language, task


@dataclass(frozen=True)
class Origin:
    """How a model was made.

    Attributes:
        kind: `merge`, `finetune`, or empty where nothing is known.
        method: of a merge.
        base: identity of the model it was made from.
        covers: languages and tasks it was made for; None where that is not known.
        hours: of training data, on average over languages and tasks.
        svp, mp: ratios kept, OWN where the deltas differ.
        scale: lambda, OWN where the deltas or the tensors differ.
        coef: rules that lambda is multiplied by.
        deltas: fingerprints of what was merged.
        step_norm: of a merge, the L2 norm of its step; None where that is not known.
    """

    kind: str = ""
    method: str = ""
    base: str = ""
    covers: frozenset[tuple[str, str]] | None = None
    hours: float | None = None
    svp: float | str | None = None
    mp: float | str | None = None
    scale: float | str | None = None
    coef: tuple[str, ...] = ()
    deltas: frozenset[str] = frozenset()
    step_norm: float | None = None

    @property
    def languages(self) -> int | None:
        """How many it was made for."""
        return None if self.covers is None else len({language for language, _ in self.covers})


@dataclass(frozen=True)
class Entry:
    """One record of a results file."""

    file: Path
    system: str
    run: str
    record: Record
    identity: str
    origin: Origin

    @property
    def key(self) -> Key:
        """Data set, language and task."""
        return self.record.dataset, self.record.language, self.record.task

    @property
    def covered(self) -> bool:
        """Whether the model was made for this language and task, as far as is known."""
        covers = self.origin.covers
        return covers is None or (self.record.language, self.record.task) in covers


Runs = Mapping[str, Mapping[Key, Entry]]  # of one system


class Settings(NamedTuple):
    """Settings in which the rows of one system may differ.

    Attributes:
        languages: how many each model was made for.
        hours: of training data, rounded so that data sets of one size have the same.
        svp, mp: ratios kept, OWN where deltas or models differ.
    """

    languages: int | None
    hours: float | None
    svp: float | str | None
    mp: float | str | None


NAMES = ("languages", "hours", "SVP", "MP")  # of the settings, in a label


@dataclass(frozen=True, eq=False)
class Row:
    """Models that are averaged: the runs of one system with the same settings.

    Attributes:
        system: the models' name without the run.
        label: the name, and the settings that the system's rows differ in.
        settings: of the models.
        runs: run -> data set, language and task -> its record.
    """

    system: str
    label: str
    settings: Settings
    runs: Runs

    @property
    def order(self) -> tuple[float, ...]:
        """Sort key of a system's rows: unknown settings first, mixed ones last."""
        return tuple(
            -math.inf if value is None else math.inf if isinstance(value, str) else value
            for value in self.settings
        )

    @property
    def entries(self) -> list[Entry]:
        """The records of all runs."""
        return [entry for run in self.runs.values() for entry in run.values()]


def system_and_run(name: str, runs: bool) -> tuple[str, str]:
    """Split a model's name into its system and its run, which is empty for most.

    Args:
        name: `lors:seed0` or `lors:seed0-ca+de` is a run of `lors`; the colon of a Hub file,
            `you/merges:lors.safetensors`, is a part of the name.
        runs: take what follows the last colon of any name for a run.
    """
    seeded = SEEDED.fullmatch(name)
    if seeded:
        return seeded[1], seeded[2]
    system, colon, run = name.rpartition(RUN_MARK)
    return (system, run) if runs and system and colon else (name, "")


def origin_of(made_from: Mapping[str, Any]) -> Origin:
    """Return a model's origin from `made_from` of a results file."""
    if not made_from:
        return Origin()
    deltas = made_from.get("deltas", [])
    parts = deltas or [made_from]
    groups = [group for part in parts for group in part.get("trained_on", [])]
    known = all(part.get("trained_on") for part in parts)
    hours = [group["hours"] for group in groups if "hours" in group]
    coef = tuple(made_from.get("coef", ()))
    return Origin(
        kind=made_from.get("kind", ""),
        method=made_from.get("method", ""),
        base=made_from.get("base", ""),
        covers=frozenset((g["language"], g["task"]) for g in groups) if known else None,
        hours=sum(hours) / len(hours) if hours else None,
        svp=_only((delta.get("svp") for delta in deltas), OWN),
        mp=_only((delta.get("mp") for delta in deltas), OWN),
        scale=OWN if coef else _only((delta.get("scale") for delta in deltas), OWN),
        coef=coef,
        deltas=frozenset(delta["fingerprint"] for delta in deltas),
        step_norm=made_from.get("step_norm"),
    )


def _only(values: Iterable[T], mixed: T) -> T | None:
    """Return the value that all share, `mixed` where they differ, None for no value."""
    unique = set(values)
    return mixed if len(unique) > 1 else next(iter(unique), None)


def rows_of(systems: Mapping[str, Runs]) -> Iterable[Row]:
    """Group the runs of one system and of the same settings into a row.

    Those named `seed0`, `seed1` and so on are one row, though ratios were chosen for each.
    """
    hours = {(system, run): mean_hours(entries.values())
             for system, runs in systems.items() for run, entries in runs.items()}  # fmt: skip
    sizes = _sizes({value for value in hours.values() if value is not None})
    for system, runs in systems.items():
        settings: dict[str, Settings] = {}
        for run, entries in runs.items():
            value = hours[system, run]
            size = None if value is None else sizes[value]
            origins = [entry.origin for entry in entries.values()]
            settings[run] = _common([Settings(o.languages, size, o.svp, o.mp) for o in origins])
        if seeds := [run for run in runs if SEED.fullmatch(run)]:
            settings |= dict.fromkeys(seeds, _common([settings[run] for run in seeds]))
        rows: dict[Settings, dict[str, Mapping[Key, Entry]]] = {}
        for run, entries in runs.items():
            rows.setdefault(settings[run], {})[run] = entries
        differs = [len(set(column)) > 1 for column in zip(*rows, strict=True)]
        for values, members in rows.items():
            words = [
                f"{name} {setting(value)}"
                for name, value, shown in zip(NAMES, values, differs, strict=True)
                if shown and value is not None
            ]
            label = f"{system} ({', '.join(words)})" if words else system
            yield Row(system, label, values, members)


def _common(settings: Sequence[Settings]) -> Settings:
    """Return the settings that models have in common."""
    languages, hours, svp, mp = zip(*settings, strict=True)
    return Settings(_only(languages, None), _only(hours, None), _only(svp, OWN), _only(mp, OWN))


def mean_hours(entries: Iterable[Entry]) -> float | None:
    """Return hours of training data for each language and task; None where that is not known."""
    hours = [entry.origin.hours for entry in entries if entry.origin.hours is not None]
    return sum(hours) / len(hours) if hours else None


def _sizes(hours: Iterable[float]) -> dict[float, float]:
    """Return hours -> the size of data that they count as: the mean of those near them."""
    clusters: list[list[float]] = []
    for value in sorted(hours):
        if clusters and value <= clusters[-1][-1] * SAME_HOURS:
            clusters[-1].append(value)
        else:
            clusters.append([value])
    return {
        value: float(f"{sum(cluster) / len(cluster):.2g}")
        for cluster in clusters
        for value in cluster
    }
