"""Choose rows by what their columns hold: `--only accent=balear`, `--where 'duration<15'`."""

from __future__ import annotations

import math
import operator
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from lorsmerge_cli.data.languages import parse_language, parse_task
from lorsmerge_cli.errors import UsageFault, did_you_mean

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
    "<": operator.lt, ">": operator.gt,
}  # fmt: skip
ORDER = ("<=", ">=", "<", ">")
FORM = re.compile(r"(?P<column>[^<>=!]+)(?P<operator><=|>=|==|!=|<|>)(?P<value>[^<>=!].*|)", re.S)
HOW = "Write 'COLUMN OPERATOR VALUE', such as 'duration<15'; the operators are < <= > >= == !=."
DURATION = "duration"  # of what is used, which the audio's header tells
NAMES = ("language", "task")
FIELDS = ("id", "text", "text_length", "speaker")  # further columns that every row has
DISTINCT = 1000  # values of a column that are counted
SHOWN = 5  # values in a message
CHARACTERS = 40  # of a value in a message


@dataclass(frozen=True)
class Condition:
    """What a column has to hold.

    Attributes:
        column: its name in the data set, or one of DURATION, NAMES and FIELDS.
        operator: a key of OPERATORS.
        values: a number or a text; several are alternatives, of `==` alone.
        option: that it was given by.
    """

    column: str
    operator: str
    values: tuple[float | str, ...]
    option: str = "--where"

    def __str__(self) -> str:
        sign = "=" if self.option == "--only" else self.operator
        return f"{self.column}{sign}{' or '.join(map(_shown, self.values))}"

    def holds(self, cell: object) -> tuple[float | str, ...]:
        """Return the values that a cell is compared with successfully; it is empty if there are none.

        A cell without a value is an empty text, and is neither less nor greater than anything.

        Raises:
            ValueError: the two cannot be compared; the message says what the cell is.
        """
        return tuple(value for value in self.values if self._holds(cell, value))

    def _holds(self, cell: object, value: float | str) -> bool:
        if isinstance(cell, list | dict | tuple | bytes):
            raise ValueError("lists or objects, which are not compared")
        if _is_missing(cell):
            return self.operator not in ORDER and OPERATORS[self.operator]("", value)
        known = _number(cell)
        if isinstance(value, float):
            if known is not None:
                return OPERATORS[self.operator](known, value)
            if self.operator in ORDER:
                raise ValueError(f"texts such as {_shown(str(cell))!r}, and {value:g} is a number")
            return self.operator == "!="
        if isinstance(cell, bool):
            return OPERATORS[self.operator](str(cell).casefold(), value.casefold())
        if known is not None and isinstance(cell, int | float):
            if self.operator in ORDER:
                raise ValueError(f"numbers such as {known:g}, and {_shown(value)!r} is a text")
            return OPERATORS[self.operator](known, _number(value))
        return OPERATORS[self.operator](_composed(str(cell)), _composed(value))


def parse_conditions(only: Iterable[str] = (), where: Iterable[str] = ()) -> tuple[Condition, ...]:
    """Return the conditions that rows have to meet, all of them.

    Args:
        only: `COLUMN=VALUE`; several of one column are alternatives.
        where: a column, an operator and a number or text, which may be in quotation marks.

    Raises:
        UsageFault: one has not this form.

    Example:
        >>> [str(found) for found in parse_conditions(["accent=a", "accent=b"], ["duration < 15"])]
        ['accent=a or b', 'duration<15']
    """
    alternatives: dict[str, list[float | str]] = {}
    for text in only:
        column, sign, value = (part.strip() for part in text.partition("="))
        if not (column and sign) or value.startswith("=") or column[-1] in "<>!":
            raise UsageFault(
                f"--only {text!r} is no COLUMN=VALUE.",
                f"Write --only accent=balear; --where {text!r} is for other comparisons.",
            )
        alternatives.setdefault(column, []).append(_named(column, value))
    found = [
        Condition(column, "==", tuple(dict.fromkeys(values)), "--only")
        for column, values in alternatives.items()
    ]
    return (*found, *dict.fromkeys(map(_parse, where)))


def _parse(text: str) -> Condition:
    match = FORM.fullmatch(text.strip())
    if match is None or not match["column"].strip():
        single = re.fullmatch(r"([^<>=!]+)=([^<>=!]+)", text.strip())
        hint = f"Write {single[1].strip()}=={single[2].strip()}." if single else HOW
        raise UsageFault(f"--where {text!r} is no comparison.", hint)
    column, value = match["column"].strip(), match["value"].strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return Condition(column, match["operator"], (_named(column, value[1:-1]),))
    if not value:
        raise UsageFault(f"--where {text!r} compares with nothing.", f"{HOW} An empty text is ''.")
    if re.search("[<>]|[=!]=", value):
        raise UsageFault(
            f"--where {text!r} has several comparisons.",
            "Give --where once for each: all of them have to be true.",
        )
    number = _number(value)
    return Condition(
        column, match["operator"], (_named(column, value) if number is None else number,)
    )


def _named(column: str, value: str) -> str:
    """Return a language's code or a task's name for any spelling of it, and other values as they are."""
    parse = {"language": parse_language, "task": parse_task}.get(column)
    return parse(value) if parse and value else value


def _number(value: object) -> float | None:
    """Return a finite number, also of digits in a text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _is_missing(cell: object) -> bool:
    return cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _shown(value: float | str) -> str:
    text = f"{value:g}" if isinstance(value, float) else value
    return text if len(text) <= CHARACTERS else f"{text[: CHARACTERS - 3]}..."


@dataclass
class _Held:
    """What the rows have in a column: `count` of them have it."""

    count: int = 0
    empty: int = 0
    low: float = math.inf
    high: float = -math.inf
    texts: Counter[str] = field(default_factory=Counter)

    def add(self, cell: object) -> None:
        self.count += 1
        if _is_missing(cell) or isinstance(cell, list | dict | tuple | bytes):
            self.empty += 1
            return
        number = _number(cell)
        if number is not None:
            self.low, self.high = min(self.low, number), max(self.high, number)
        if str(cell) in self.texts or len(self.texts) < DISTINCT:
            self.texts[str(cell)] += 1

    def in_words(self) -> str:
        """Return what the column holds: `numbers from 0 to 12`, `a (12 rows), b (1)`."""
        if not self.texts:
            return "nothing in any row"
        if self.low <= self.high and all(_number(text) is not None for text in self.texts):
            return f"numbers from {self.low:g} to {self.high:g}"
        common = self.texts.most_common(SHOWN)
        listed = [
            f"{_shown(text)!r} in {count} row{'s' if count > 1 else ''}" for text, count in common
        ]
        more = len(self.texts) - len(common)
        least = "at least " if len(self.texts) >= DISTINCT else ""
        if more:
            listed.append(f"{least}{more} other{'s' if more > 1 else ''}")
        return ", ".join(listed)


class Wanted:
    """Conditions, and what the rows of a data set that were compared with them hold.

    Args:
        conditions: that rows have to meet.
        place: the data set in messages.
    """

    def __init__(self, conditions: Sequence[Condition] = (), place: str = "") -> None:
        self.place = place
        self._all = tuple(conditions)
        self._cells = [each for each in conditions if each.column not in (*FIELDS, DURATION)]
        self._fields = [each for each in conditions if each.column in FIELDS]
        self._length = [each for each in conditions if each.column == DURATION]
        self._held = {each.column: _Held() for each in conditions}
        self._met: dict[Condition, Counter[float | str]] = {each: Counter() for each in conditions}
        self._known: dict[str, None] = {}

    @property
    def columns(self) -> list[str]:
        """The columns that a data set has to be read for, beside what every row has."""
        return list(dict.fromkeys(each.column for each in self._cells if each.column not in NAMES))

    def add_columns(self, names: Iterable[str], audio: str = "") -> None:
        """Note the columns of a data set, of which not all may be read.

        Args:
            names: all of them.
            audio: the one that holds recordings.

        Raises:
            UsageFault: that one is to be compared.
        """
        self._known |= dict.fromkeys(names)
        if audio and audio in self.columns:
            raise UsageFault(
                f"{self.place}: the column {audio!r} holds audio, which is not compared.",
                "Name another column.",
            )

    def lacks(self, cells: Mapping[str, Any], language: str, task: str) -> str:
        """Return the conditions that a row's cells do not meet, in words; "" if there are none."""
        if not self._cells:
            return ""
        cells = {**cells, "language": language, "task": task}
        if len(cells) > len(self._known) or not cells.keys() <= self._known.keys():
            self._known |= dict.fromkeys(cells)
        return self._lacking(self._cells, cells)

    def lacks_fields(self, values: Mapping[str, Any]) -> str:
        """Return what the row's FIELDS do not meet, as `lacks` does."""
        return self._lacking(self._fields, values) if self._fields else ""

    def lacks_length(self, seconds: float) -> str:
        """Return what the seconds of a row do not meet, as `lacks` does."""
        return self._lacking(self._length, {DURATION: seconds}) if self._length else ""

    def _lacking(self, conditions: Sequence[Condition], cells: Mapping[str, Any]) -> str:
        lacking = []
        for condition in conditions:
            column = condition.column
            if column in cells:
                self._held[column].add(cells[column])
            try:
                met = condition.holds(cells.get(column))
            except ValueError as error:
                raise UsageFault(
                    f"{condition.option} '{condition}': {column!r} of {self.place} holds {error}.",
                    "Compare it with == or !=, or choose another column.",
                ) from None
            if met:
                self._met[condition].update(met)
            else:
                lacking.append(str(condition))
        return ", ".join(lacking)

    def check_columns(self, labelled: bool = True) -> None:
        """Check that the columns exist, and that texts are not compared where none are read.

        Raises:
            UsageFault: no row has a column, or it is of the texts.
        """
        for condition in self._all:
            column, option = condition.column, f"{condition.option} '{condition}'"
            if not labelled and column in ("text", "text_length"):
                raise UsageFault(
                    f"{option}: texts are not read here, so rows are not chosen by them.",
                    "Choose by another column.",
                )
            rows = column in self.columns and self._known
            if rows and column not in self._known:
                known = [
                    *self._known,
                    *(n for n in (DURATION, *NAMES, *FIELDS) if n not in self._known),
                ]
                hint = did_you_mean(column, known).strip()
                hint += "" if hint.startswith("Known") else f" Known: {', '.join(known)}."
                raise UsageFault(f"{option}: no row of {self.place} has {column!r}.", hint)

    def check_met(self) -> list[str]:
        """Check that each condition is met by a row that was compared with it.

        Returns:
            A note for each alternative that no row has.

        Raises:
            UsageFault: no row meets a condition.
        """
        notes = []
        for condition, met in self._met.items():
            held = self._held[condition.column]
            lacking = [value for value in condition.values if not met[value]]
            if not held.count or not lacking:
                continue
            said = f"No row of {self.place} has {condition.column}"
            if met:
                notes += [f"{said}={_shown(value)}.{_hint(value, held)}" for value in lacking]
                continue
            said += str(condition).removeprefix(condition.column)
            hints = [_hint(value, held) for value in lacking if condition.operator == "=="]
            raise UsageFault(
                f"{said}.",
                f"{''.join(hints).strip()} {condition.column} holds {held.in_words()}.".strip(),
            )
        return notes


def _hint(value: float | str, held: _Held) -> str:
    """Return the nearest of the texts that a column holds, as a question."""
    if isinstance(value, float):
        return ""
    by_case = {text.casefold(): text for text in held.texts}
    close = get_close_matches(value.casefold(), by_case, n=1, cutoff=0.6)
    return f" Did you mean {_shown(by_case[close[0]])!r}?" if close else ""
