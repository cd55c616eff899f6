"""The types of values in a file of results or hypotheses, which anyone may have written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lorsmerge_cli.data.languages import TASKS, check_labels
from lorsmerge_cli.metrics.flaws import FLAWS
from lorsmerge_cli.metrics.timestamps import Boundaries

LARGEST = 1e12  # of a number: means and squares of larger ones may overflow
SHOWN = 40  # characters of a value in a message


class Each:
    """The shape of every value of an object whose keys are names."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape


class Listed:
    """The shapes of the values of a list of so many."""

    def __init__(self, *shapes: Any) -> None:
        self.shapes = shapes


# A shape is a type (float is any finite number), a tuple of types, a list of one shape for lists of
# it, or a dict for objects with these keys, of which those that end in ? may be missing.
NONE = type(None)
FIGURE, RATIO = (float, NONE), (float, str, NONE)
TRAINED = {"trained_on?": [{"language": str, "task": str, "hours?": float}]}
DELTA = {"fingerprint": str, "svp?": RATIO, "mp?": RATIO, "scale?": RATIO, **TRAINED}
MADE_FROM = {"kind?": str, "method?": str, "base?": str, "step_norm?": FIGURE, "deltas?": [DELTA],
             "coef?": [str], **TRAINED}  # fmt: skip
PLAIN = (str, float, bool, NONE, list)
PUBLISHED = {**dict.fromkeys(("model", "set", "language", "metric", "source", "normalise"), str),
             "score": float}  # fmt: skip
SUITE = {"name": str, "digest": str, "sets": [str], "retention": [str], "published": [PUBLISHED]}
SETTINGS = {
    "scoring": {"normalisation": str, "sets?": Each(str)},
    "suite?": SUITE,
    "decoding?": (NONE, dict),
    "decoded?": Each(str),
    "versions?": Each(PLAIN),
    "dropped?": Each(Each(int)),
    "selected?": Each([str]),
    "partial?": Each([int]),
    "splits?": Each((str, NONE)),
}
SEGMENT = Listed(float, float, str)
ROW = {"id": str, "reference": str, "hypothesis": str, "seconds": float, "speaker?": (str, NONE),
       "cut?": (bool, NONE), "source_text?": (str, NONE), "gender?": (str, NONE),
       "identified?": (str, NONE), "unheard?": Listed(int, int),
       "segments?": [SEGMENT], "heard_segments?": [SEGMENT]}  # fmt: skip
LINE = ROW | dict.fromkeys(("model", "dataset", "language", "task", "made_by?", "heard?"), str)
LINE["of?"] = int
SCORE = {**dict.fromkeys(("score", "low", "high", "standard_error"), FIGURE), "signature": str}
TIMESTAMPS = {key: float if key == "seconds" else int for key in asdict(Boundaries())}
RECORD = {
    **dict.fromkeys(("model", "dataset", "language", "task", "metric"), str),
    "blocks?": int,
    "details": {"normalisation?": str, "heard_as?": Each(int), "timestamps?": TIMESTAMPS}
    | {f"{key}?": (int, NONE) for key in FLAWS},
    "rows": [ROW],
}
RECORDS = {1: RECORD | SCORE, 2: RECORD | {"scores": Each(SCORE)}}  # by the version of the format
DOCUMENT = {
    "lorsmerge?": (str, NONE),
    "settings": SETTINGS,
    "models?": Each({"identity?": str, "made_from?": MADE_FROM}),
}


def check_line(line: Mapping[str, Any]) -> None:
    """Check a line of a file of hypotheses.

    Raises:
        ValueError: a value of another type than `eval` writes, or an unknown task.
    """
    _check(line, LINE, "")
    if line["task"] not in TASKS:
        raise ValueError(f"the task is {line['task']!r}")


def check_types(document: Mapping[str, Any], version: int) -> None:
    """Check every value that is read from a results file.

    Raises:
        ValueError: a value of another type than `eval` writes; the message names it.
    """
    _check(document, DOCUMENT | {"records": [RECORDS[version]]}, "")
    for key, value in (document["settings"].get("decoding") or {}).items():
        _check(value, PLAIN, f"settings.decoding.{key}")
        if isinstance(value, list):
            _check(value, [int], f"settings.decoding.{key}")
    for name, counts in document["settings"].get("partial", {}).items():
        if len(counts) != 2:
            raise ValueError(f"settings.partial.{name} is no pair")
    for number, record in enumerate(document["records"]):
        check_labels(record["language"], record["task"])
        if not (record["task"] and record["rows"]):
            raise ValueError(f"records[{number}] has no {'rows' if record['task'] else 'task'}")
        if version > 1 and record["metric"] not in record["scores"]:
            raise ValueError(f"records[{number}].scores has no {record['metric'][:SHOWN]!r}")
        for row in record["rows"]:
            (row["reference"] + row["hypothesis"]).encode()  # fails for half of a surrogate pair


def _check(value: Any, shape: Any, where: str) -> None:
    if isinstance(shape, Each):
        _check(value, dict, where)
        for key, item in value.items():
            _check(item, shape.shape, f"{where}.{key}")
    elif isinstance(shape, Listed):
        _check(value, list, where)
        if len(value) != len(shape.shapes):
            raise ValueError(f"{where} has {len(value)} values".lstrip("."))
        for number, (item, inner) in enumerate(zip(value, shape.shapes, strict=True)):
            _check(item, inner, f"{where}[{number}]")
    elif isinstance(shape, list):
        _check(value, list, where)
        for number, item in enumerate(value):
            _check(item, shape[0], f"{where}[{number}]")
    elif isinstance(shape, dict):
        _check(value, dict, where)
        for name, inner in shape.items():
            key = name.removesuffix("?")
            if key in value:
                _check(value[key], inner, f"{where}.{key}")
            elif key == name:
                raise ValueError(f"{where}.{key} is missing".lstrip("."))
    elif not any(_is(value, kind) for kind in (shape if isinstance(shape, tuple) else (shape,))):
        shown = ascii(value)
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
        raise ValueError(f"{where.lstrip('.')[: 4 * SHOWN] or 'it'} is {shown}")


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) <= LARGEST
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
