"""Records of results files, how their models were made, and the rows of tables they form."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lorsmerge_cli.operations.report.numbers import setting
from lorsmerge_cli.results.records import Record

RUN_MARK = ":"
SEED = re.compile(r"seed\d+")  # a run of this name is one more of the same, whatever its settings
SEEDED = re.compile(rf"(.+){RUN_MARK}(seed\d+(?:-.*)?)")
OWN = "own"  # in place of a ratio where each delta has its own
SAME_HOURS = 1.25  # sizes of data count as one where no gap between them is of this factor

SETTINGS = ("languages", "hours", "SVP", "MP")

T = TypeVar("T")
Key = tuple[str, str, str]  # dataset, language, task
Settings = tuple[int | None, float | None, float | str | None, float | str | None]


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
        scale: lambda, OWN where the deltas differ.
        deltas: fingerprints of what was merged.
    """

    kind: str = ""
    method: str = ""
    base: str = ""
    covers: frozenset[tuple[str, str]] | None = None
    hours: float | None = None
    svp: float | str | None = None
    mp: float | str | None = None
    scale: float | str | None = None
    deltas: frozenset[str] = frozenset()

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
        return self.record.dataset, self.record.language, self.record.task

    @property
    def covered(self) -> bool:
        """Whether the model was made for this language and task, as far as is known."""
        covers = self.origin.covers
        return covers is None or (self.record.language, self.record.task) in covers


@dataclass(frozen=True, eq=False)
class Row:
    """Models that are averaged: the runs of one system under one set of settings.

    Attributes:
        system: the name, less a run's.
        label: the name, and the settings that the system's rows differ in.
        languages: how many each model was made for.
        hours: of training data, rounded so that data sets of one size have the same.
        svp, mp: ratios kept, OWN where deltas or models differ.
        runs: run -> data set, language and task -> its record.
    """

    system: str
    label: str
    languages: int | None
    hours: float | None
    svp: float | str | None
    mp: float | str | None
    runs: Mapping[str, Mapping[Key, Entry]]

    @property
    def order(self) -> tuple[float, ...]:
        """For sorting a system's rows: unknown settings first, mixed ones last."""
        values = (self.languages, self.hours, self.svp, self.mp)
        return tuple(
            -math.inf if value is None else math.inf if isinstance(value, str) else value
            for value in values
        )

    @property
    def entries(self) -> list[Entry]:
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
    """The origin that `made_from` of a results file tells."""
    if not made_from:
        return Origin()
    deltas = made_from.get("deltas", [])
    parts = deltas or [made_from]
    groups = [group for part in parts for group in part.get("trained_on", [])]
    known = all(part.get("trained_on") for part in parts)
    hours = [group["hours"] for group in groups if "hours" in group]
    return Origin(
        kind=made_from.get("kind", ""),
        method=made_from.get("method", ""),
        base=made_from.get("base", ""),
        covers=frozenset((g["language"], g["task"]) for g in groups) if known else None,
        hours=sum(hours) / len(hours) if hours else None,
        svp=_one([delta.get("svp") for delta in deltas]),
        mp=_one([delta.get("mp") for delta in deltas]),
        scale=_one([delta.get("scale") for delta in deltas]),
        deltas=frozenset(delta["fingerprint"] for delta in deltas),
    )


def _one(values: Sequence[float | str | None]) -> float | str | None:
    found = set(values)
    if len(found) > 1:
        return OWN
    return found.pop() if found else None


def rows_of(entries: Sequence[Entry]) -> Iterable[Row]:
    """Runs of one system and of the same settings; its other runs are rows of their own.

    Those named `seed0`, `seed1` and so on are one row, though ratios were chosen for each.
    """
    runs: dict[tuple[str, str], dict[Key, Entry]] = {}
    for entry in entries:
        runs.setdefault((entry.system, entry.run), {})[entry.key] = entry
    hours = {name: mean_hours(found.values()) for name, found in runs.items()}
    sizes = _sizes([value for value in hours.values() if value is not None])
    settings: dict[tuple[str, str], Settings] = {}
    for name, found in runs.items():
        size = hours[name]
        settings[name] = _settings(found.values(), None if size is None else sizes[size])
    for system in {name for name, _ in runs}:
        seeds = [(name, run) for name, run in runs if name == system and SEED.fullmatch(run)]
        if seeds:
            shared = _shared([settings[name] for name in seeds])
            settings |= dict.fromkeys(seeds, shared)
    rows: dict[tuple[str, Settings], dict[str, dict[Key, Entry]]] = {}
    for (system, run), found in runs.items():
        rows.setdefault((system, settings[system, run]), {})[run] = found
    for (system, its), own in rows.items():
        columns = zip(*(other for name, other in rows if name == system), strict=True)
        words = [
            f"{word} {setting(value)}"
            for word, value, column in zip(SETTINGS, its, columns, strict=True)
            if len(set(column)) > 1 and value is not None
        ]
        yield Row(system, f"{system} ({', '.join(words)})" if words else system, *its, own)


def _settings(entries: Iterable[Entry], hours: float | None) -> Settings:
    """What tells the rows of one system apart."""
    origins = [entry.origin for entry in entries]
    return (
        _common([origin.languages for origin in origins]),
        hours,
        _one([origin.svp for origin in origins]),
        _one([origin.mp for origin in origins]),
    )


def _shared(found: Sequence[Settings]) -> Settings:
    """What runs have in common."""
    return (
        _common([languages for languages, _, _, _ in found]),
        _common([hours for _, hours, _, _ in found]),
        _one([svp for _, _, svp, _ in found]),
        _one([mp for _, _, _, mp in found]),
    )


def _common(values: Sequence[T]) -> T | None:
    return values[0] if len(set(values)) == 1 else None


def mean_hours(entries: Iterable[Entry]) -> float | None:
    """Of training data for each language and task; None where that is not known."""
    known = [entry.origin.hours for entry in entries if entry.origin.hours is not None]
    return sum(known) / len(known) if known else None


def _sizes(hours: Sequence[float]) -> dict[float, float]:
    """Hours -> the size of data that they count as: the mean of those near them."""
    clusters: list[list[float]] = []
    for value in sorted(set(hours)):
        if clusters and value <= clusters[-1][-1] * SAME_HOURS:
            clusters[-1].append(value)
        else:
            clusters.append([value])
    return {
        value: float(f"{sum(cluster) / len(cluster):.2g}")
        for cluster in clusters
        for value in cluster
    }
