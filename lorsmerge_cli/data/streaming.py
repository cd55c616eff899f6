"""Data sets on the Hub of which the first rows alone are read: `--streaming`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from lorsmerge_cli.data.hours import Given, parse_hours
from lorsmerge_cli.data.readers.hub import PREFIX, detects, parse_reference
from lorsmerge_cli.errors import UsageFault

Data = TypeVar("Data", str, Path)


def as_first_hours(data: Sequence[Data], hours: Given, *, needed: bool = True) -> list[Data]:
    """Return data sets, those on the Hub as references to the first hours of their splits.

    Args:
        data: data sets, also as `NAME=DATA`. References that say how much is read stay as they are.
        hours: a number of each data set.
        needed: whether at least one has to be on the Hub.

    Raises:
        UsageFault: there is no such number, or no data set is on the Hub and one has to be.

    Example:
        >>> as_first_hours(["ca.jsonl", "dev=hub:org/set:ca:validation"], 0.5)
        ['ca.jsonl', 'dev=hub:org/set:ca:validation:first=0.5']
    """
    asked = parse_hours(hours)
    if asked is None or asked.each is None or asked.languages:
        raise UsageFault(
            "--streaming reads each split's first rows until there are enough of them, and needs --hours "
            "with one number.",
            "Add --hours 5, or leave out --streaming: then all of the split is fetched.",
        )
    found = [_reference(str(item)) for item in data]
    if needed and not any(reference for _, reference in found):
        raise UsageFault(
            f"--streaming is for data sets on the Hub ({PREFIX}...), and none is given.",
            "Leave it out.",
        )
    return [
        type(item)(name + _with_first(reference, asked.each)) if reference else item
        for item, (name, reference) in zip(data, found, strict=True)
    ]


def _reference(text: str) -> tuple[str, str]:
    """Return the name before a reference to the Hub, with its `=`, and that; both are empty if there is none."""
    name, sign, rest = text.partition("=")
    if not text.startswith(PREFIX) and sign and not Path(text).exists():
        return (f"{name}=", rest) if detects(Path(rest)) else ("", "")
    return ("", text) if detects(Path(text)) else ("", "")


def _with_first(text: str, hours: float) -> str:
    reference = parse_reference(text)
    return str(replace(reference, first=hours)) if reference.first is None else text


def first_hours(path: Path) -> float | None:
    """Return how many hours of a split's first rows a reference is for; None if it is for all rows."""
    return parse_reference(str(path)).first if detects(path) else None


def with_hours(path: Path, hours: float | None) -> Path:
    """Return a data set with other hours if it is one whose first hours are read; None for all."""
    if first_hours(path) is None:
        return path
    return Path(str(replace(parse_reference(str(path)), first=hours)))
