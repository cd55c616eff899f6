"""Parameters of pruners and combiners, and how the text of a method sets them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorsmerge_cli.errors import LorsmergeError, UsageFault, did_you_mean, raise_all

Value = float | str
Values = tuple[tuple[str, Value], ...]  # those that are not the default, in the declared order


@dataclass(frozen=True)
class Parameter:
    """A number, or one of some words, that a pruner or a combiner takes.

    Attributes:
        name: of the keyword that the function takes it by.
        default: what the function takes without it.
        help: what it is, in a line.
        low, high: the smallest and largest number.
        above: whether the number has to be above `low`.
        whole: whether it is a whole number.
        choices: the words there are; empty for a number.

    Example:
        >>> Parameter("k", 0.2, "share of the elements that is kept", above=True).range
        'above 0 and at most 1'
    """

    name: str
    default: Value
    help: str
    low: float = 0
    high: float = 1
    above: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        """The values that it takes, in words."""
        if self.choices:
            return " or ".join(self.choices)
        if self.above:
            return f"above {self.low:g} and at most {self.high:g}"
        if self.whole:
            return f"a whole number from {int(self.low)} to {int(self.high):,}"
        return f"from {self.low:g} to {self.high:g}"

    def parse(self, text: str) -> Value:
        """Read a value.

        Raises:
            ValueError: it is none that the parameter takes.

        Example:
            >>> Parameter("seed", 0, "of the drawing", high=2**32 - 1, whole=True).parse("7")
            7
        """
        if self.choices:
            if text not in self.choices:
                raise ValueError(f"not {self.range}")
            return text
        value = int(text) if self.whole and text.isdecimal() else float(text)
        fits = self.low < value if self.above else self.low <= value
        if not (fits and value <= self.high) or (self.whole and value != math.floor(value)):
            raise ValueError(f"not {self.range}")
        return int(value) if self.whole else value


def parse_settings(text: str, parameters: Sequence[Parameter], owner: str) -> dict[str, Value]:
    """Read `k=0.3,seed=1`.

    Args:
        text: settings, separated by commas.
        parameters: that there are.
        owner: whose they are, as messages call it.

    Raises:
        UsageFault: a setting that is unknown, given twice, or of a value that it does not take.

    Example:
        >>> parse_settings("k=0.30", [Parameter("k", 0.2, "share that is kept")], "Method ties")
        {'k': 0.3}
    """
    known = {parameter.name: parameter for parameter in parameters}
    found: dict[str, Value] = {}
    faults: list[LorsmergeError] = []
    for item in text.split(","):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not known:
            faults.append(UsageFault(f"{owner} takes no parameters, and {item!r} is given."))
        elif not equals:
            remedy = f"Write {parameters[0].name}={shown(parameters[0].default)}, say."
            faults.append(UsageFault(f"{owner}: {item!r} is not a setting.", remedy))
        elif name not in known:
            what = f"{owner} has no parameter {name!r}.{did_you_mean(name, list(known))}"
            faults.append(UsageFault(what))
        elif name in found:
            faults.append(UsageFault(f"{owner}: {name!r} is given twice."))
        else:
            try:
                found[name] = known[name].parse(value)
            except ValueError:
                what = f"{owner}: {name}={value} is not {known[name].range}."
                faults.append(UsageFault(what, f"It is the {known[name].help}."))
    raise_all(faults)
    return found


def changed(values: Mapping[str, Value], parameters: Sequence[Parameter]) -> Values:
    """Return the values of parameters that are not the default.

    Example:
        >>> changed({"k": 0.3}, [Parameter("k", 0.2, "")]), changed({"k": 0.2}, [Parameter("k", 0.2, "")])
        ((('k', 0.3),), ())
    """
    return tuple(
        (parameter.name, values[parameter.name])
        for parameter in parameters
        if values.get(parameter.name, parameter.default) != parameter.default
    )


def shown(value: Value) -> str:
    """Return a value as it is written in a method's text, of which `parse` makes the same.

    Example:
        >>> shown(0.3), shown(1.0), shown(0.1234567890123), shown("mean")
        ('0.3', '1', '0.1234567890123', 'mean')
    """
    if isinstance(value, str):
        return value
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
