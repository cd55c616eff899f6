"""What a search may choose: ratios and scales, shared, one per delta, or by groups of tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from lorsmerge_cli.core.combining import PAPER_SCALE
from lorsmerge_cli.core.methods import default_scale, find_method, method_faults
from lorsmerge_cli.errors import LorsmergeError, UsageFault, raise_all
from lorsmerge_cli.inputs import several
from lorsmerge_cli.recipe.coefficients import PARTS, REST, Pattern, check_groups, groups_of
from lorsmerge_cli.recipe.recipe import (
    DELTA_SETTINGS,
    RATIOS,
    DeltaEntry,
    Recipe,
    statistics_refused,
)

DEFAULTS = {"svp": "0.01,0.02,0.05", "mp": "0.1,0.2,0.4"}  # of methods that take these ratios
EXAMPLES = {kind: f"--{kind} {text}" for kind, text in DEFAULTS.items()} | {
    "scale": "--scale 0.05:0.5"
}
BY = ("half", "module", "depth", "part")
WHOLE = "whole"  # of a group some of whose tensors have parts: those that have none
BOUND = 10.0  # times the method's lambda, or the first one: a learned one's ends, below 0 too
GRADIENT = "gradient"  # the sampler that learns lambdas
METHOD, BETA = "method", "beta"  # parameters of several methods, and of --by depth
DIGITS = 4  # of a value drawn from a range
LARGEST_GRID = 10_000

Value = float | str | None  # None for `none`, and for a ratio that the method does not take
Point = dict[str, Value]  # a parameter's name -> its value


@dataclass(frozen=True)
class Values:
    """Choices, or a range.

    Attributes:
        choices: numbers or None (`none`: no such part), or methods; empty for a range.
        low, high: ends of a range, both in it.
        step: between the values of a range; None for any of them.
    """

    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None

    @property
    def listed(self) -> tuple[Value, ...]:
        """All values; empty for a range without a step."""
        if self.choices or self.step is None:
            return self.choices
        count = round((self.high - self.low) / self.step) + 1
        # not `rounded`: Optuna knows the values of a range by their steps from its lower end
        return tuple(float(f"{self.low + n * self.step:.12g}") for n in range(count))

    @property
    def largest(self) -> float | None:
        """The largest number; None where there is none."""
        if not self.choices:
            return self.high
        return max(self._numbers, default=None)

    def nearest(self, value: float) -> float | None:
        """Return the value nearest to a number; None where there are no numbers."""
        if self._numbers:
            return min(self._numbers, key=lambda item: abs(item - value))
        return None if self.listed else min(max(value, self.low), self.high)

    @property
    def _numbers(self) -> list[float]:
        return [item for item in self.listed if isinstance(item, float | int)]


BETAS = Values(low=-1.0, high=3.0, step=0.25)  # the last block's lambda: 0 to 4 times the first's


def rounded(value: float) -> float:
    """Round to `DIGITS` significant digits, as a person would write a value."""
    return float(f"{value:.{DIGITS}g}")


def parse_values(kind: str, text: str) -> Values:
    """Read `0.01,0.02,none`, `0.05:0.5` or `0.05:0.5:0.05`.

    Raises:
        UsageFault: no numbers, an empty range, or values that the option cannot take.
    """

    def number(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UsageFault(
                f"--{kind} {text!r}: {word!r} is not a finite number.",
                f"Write {EXAMPLES[kind]}, say.",
            )
        return value

    def checked(value: float) -> float:
        if kind != "scale" and not 0 < value <= 1:
            raise UsageFault(
                f"--{kind} {text!r}: {value:g} is not above 0 and at most 1.",
                "It is the share that is kept; `none` stands for no such pruning.",
            )
        return value

    if ":" in text:
        low, high, *rest = (number(word) for word in text.split(":"))
        if len(rest) > 1 or low >= high or any(step <= 0 for step in rest):
            raise UsageFault(
                f"--{kind} {text!r} is an empty range.",
                "Write LOW:HIGH or LOW:HIGH:STEP, the lower end first.",
            )
        if rest:  # the last value that the steps reach
            low_, step = Decimal(str(low)), Decimal(str(rest[0]))
            high = float(low_ + (Decimal(str(high)) - low_) // step * step)
        return Values((), checked(low), checked(high), rest[0] if rest else None)
    words = [word.strip() for word in text.split(",")]
    found = [
        None if word == "none" and kind != "scale" else checked(number(word)) for word in words
    ]
    return Values(tuple(dict.fromkeys(found)))


@dataclass(frozen=True)
class Space:
    """The parameters of a search, and the recipe that each point stands for.

    Attributes:
        base: of the recipes.
        deltas: paths, in order.
        values: kind (`svp`, `mp`, `scale`) -> its values; a ratio may be missing.
        per_delta: kinds that each delta has a parameter of its own for.
        include, exclude: patterns, as in a recipe.
        method: of every point, as `find_method` reads it; None to have it follow from the ratios.
        by: of BY, what lambda differs by.
        groups: of tensors, each with a lambda of its own; empty for one lambda.
        methods: to choose from, two or more; empty for one method.
        units: of several methods, the lambda at which the step is as long as that of task
            arithmetic at lambda 1; a point's lambdas are multiplied by it. 1 where there is none.
        start: of every lambda that is learned; None where lambdas are drawn.
        parted: groups with tensors whose low-rank and sparse part have a lambda each; `*` where
            there are no groups.
    """

    base: str
    deltas: tuple[str, ...]
    values: Mapping[str, Values]
    per_delta: frozenset[str] = frozenset()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    method: str | None = None
    by: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    units: Mapping[str, float] = field(default_factory=dict)
    start: float | None = None
    parted: tuple[str, ...] = ()

    def grouped(self, names: Sequence[str], base: object, parted: Collection[str] = ()) -> Space:
        """Return the space with the groups that a base's tensors fall into.

        Args:
            names: of the base's float tensors.
            base: what messages call it.
            parted: those with a low-rank and a sparse part in every delta.

        Raises:
            UsageFault: the base has nothing to tell apart by.
        """
        raise_all(check_groups(self.by, names, base))
        groups = groups_of(self.by, names) if {"half", "module"} & {*self.by} else []
        there = {group_of(groups, name) for name in parted} if "part" in self.by else set()
        return replace(
            self, groups=tuple(groups), parted=tuple(g for g in groups or [REST] if g in there)
        )

    def group(self, name: str) -> str:
        """Return the group of a tensor; `*` where there are none."""
        return group_of(self.groups, name)

    def lambdas(self) -> dict[str, tuple[int | None, str, str]]:
        """Return what each lambda is for: delta (from 0; None for all), group, part of a delta.

        The part is of PARTS, or WHOLE, in a group that is parted; else it is empty.
        """
        apart = "scale" in self.per_delta
        found: dict[str, tuple[int | None, str, str]] = {}
        for delta in range(len(self.deltas)) if apart else [None]:
            for group in self.groups or [REST]:
                for part in (WHOLE, *PARTS) if group in self.parted else [""]:
                    number = "" if delta is None else str(delta + 1)
                    label = ",".join(filter(None, [number, group if self.groups else "", part]))
                    found[f"scale[{label}]" if label else "scale"] = delta, group, part
        return found

    @property
    def parameters(self) -> dict[str, Values]:
        """Name -> values; `scale`, or `scale[1]`, `scale[2]`, ... for the deltas in order.

        With groups it is `scale[encoder]` and so on, by depth there is `beta`, and of several
        methods there is `method`, which comes first.
        """
        found = {METHOD: Values(self.methods)} if self.methods else {}
        found |= {
            name: self.values[kind]
            for kind in DELTA_SETTINGS
            if kind in self.values
            for name in self.names(kind)
        }
        return found | ({BETA: BETAS} if "depth" in self.by else {})

    def takes(self, point: Mapping[str, Value], name: str) -> bool:
        """Tell whether the method of a point, if it has one, takes a parameter."""
        method, kind = point.get(METHOD), name.partition("[")[0]
        return method is None or kind not in RATIOS or kind in find_method(str(method)).ratios

    def normal(self, point: Mapping[str, Value]) -> Point:
        """Return a point with numbers as its recipe has them, and without ratios not taken."""
        return {
            name: value if isinstance(value, str)
            else None if value is None or not self.takes(point, name) else rounded(value)
            for name, value in point.items()
        }  # fmt: skip

    def names(self, kind: str) -> list[str]:
        """Return the names of a kind's parameters: `svp`, or `svp[1]`, `svp[2]`, ..."""
        if kind == "scale":
            return list(self.lambdas())
        return [f"{kind}[{label}]" for label in self.labels(kind)] or [kind]

    def labels(self, kind: str) -> list[str]:
        """Return what tells a kind's parameters apart, numbers or groups; empty for one alone."""
        if kind == "scale":
            names = list(self.lambdas())
            return [name[len("scale[") : -1] for name in names] if len(names) > 1 else []
        if kind in self.per_delta:
            return [str(number) for number in range(1, len(self.deltas) + 1)]
        return []

    @property
    def prunes(self) -> bool:
        """Whether any point has a ratio, or a method that prunes without."""
        methods = [*self.methods, *([self.method] if self.method else [])]
        ratios = [self.values[k].largest for k in RATIOS if k in self.values]
        return any(r is not None for r in ratios) or any(map(_prunes_always, methods))

    def recipe(self, point: Mapping[str, Any]) -> Recipe:
        """Return the recipe of a point, which may name another method than the space has."""
        values: dict[str, Any] = self.normal(point)
        method = values.get(METHOD, self.method)
        unit = self.units.get(method or "", 1.0)
        for name in self.names("scale") if "scale" in self.values else ():
            values[name] = rounded(unit * values[name])
        shared, coef, own = self._coefficients(values)
        for kind in self.values.keys() - {"scale"}:
            holders = own if kind in self.per_delta else [shared]
            for holder, name in zip(holders, self.names(kind), strict=True):
                holder[kind] = values[name]
        deltas = tuple(DeltaEntry(path, **o) for path, o in zip(self.deltas, own, strict=True))
        pruned = any(entry.get(ratio) for entry in (shared, *own) for ratio in RATIOS)
        pruned = pruned or (method is not None and _prunes_always(method))
        include, exclude = (self.include, self.exclude) if pruned else ((), ())
        return Recipe(
            self.base, deltas, method, **shared, include=include, exclude=exclude, coef=coef
        )

    def _coefficients(
        self, point: Mapping[str, Any]
    ) -> tuple[dict[str, Any], tuple[str, ...], list[dict[str, Any]]]:
        """Return what is shared by all deltas, the shared rules, and each delta's own settings."""
        shared: dict[str, Any] = {}
        own: list[dict[str, Any]] = [{} for _ in self.deltas]
        coef: list[str] = []
        apart = "scale" in self.per_delta
        lambdas = self.lambdas() if "scale" in self.values else {}
        scales = [point[name] for name in lambdas]
        if lambdas and (len(set(scales)) == 1 and not (apart and self.start is None)):
            shared["scale"] = scales[0]
        elif lambdas and not apart and not self.parted:
            # lambda is 1, and the factors are the lambdas of their groups
            shared["scale"] = 1.0
            coef = [f"{g}={scale:g}" for g, scale in zip(self.groups, scales, strict=True)]
        elif lambdas:
            for number, settings in enumerate(own):
                settings |= _own_lambdas(
                    [
                        (group, part, point[name])
                        for name, (delta, group, part) in lambdas.items()
                        if delta in (None, number)
                    ]
                )
        if beta := point.get(BETA):
            coef.append(f"lines:beta={beta:g}")
        return shared, tuple(coef), own

    def largest_recipe(self) -> Recipe:
        """Return the recipe of the largest values, whose checks hold for every point."""
        point: Point = {name: values.largest for name, values in self.parameters.items()}
        if self.methods:  # one that prunes, if there is one
            pruning = [method for method in self.methods if find_method(method).pruner]
            point[METHOD] = [*pruning, *self.methods][0]
        return self.recipe(point)

    def first_points(self) -> dict[str, Point]:
        """Return known settings by name, `near NAME` where the values lack one of its numbers.

        `paper` is its lambda with ratios from the middle of its Tables 5 and 6, `1/T` the same
        ratios with lambda 1 / number of deltas, `authors' script` what their code has, and `task
        arithmetic` the paper's lambda without pruning. Of several methods it is each of them, by
        its name, at the paper's lambda.
        """
        known: dict[str, tuple[float | None, float | None, float]] = {
            "paper": (0.03, 0.4, PAPER_SCALE),
            "1/T": (0.03, 0.4, rounded(1 / len(self.deltas))),
            "authors' script": (0.01, 0.2, 0.2),
        }
        if self.start is not None:
            known = {"start": (0.03, 0.4, self.start)}
        elif self.methods:
            known = dict.fromkeys(self.methods, (0.03, 0.4, PAPER_SCALE))
        elif self.method is not None:
            known = {"default": (0.03, 0.4, find_method(self.method).scale)}
        ratios = [self.values[kind] for kind in RATIOS if kind in self.values]
        plain = not self.methods and self.start is None
        if plain and ratios and all(None in values.choices for values in ratios):
            known["task arithmetic"] = (None, None, PAPER_SCALE)
        points: dict[str, Point] = {}
        for title, settings in known.items():
            wanted: Point = dict(zip(DELTA_SETTINGS, settings, strict=True))
            wanted |= {BETA: 0.0, METHOD: title}
            asked = {name: wanted[name.partition("[")[0]] for name in self.parameters}
            asked = self.normal(asked)
            point: Point = {
                name: values.nearest(value) if isinstance(value := asked[name], float) else value
                for name, values in self.parameters.items()
            }
            if point not in points.values():
                points[title if point == asked else f"near {title}"] = point
        return points

    def grid(self) -> list[Point]:
        """Return every point, the known settings first.

        Raises:
            UsageFault: a range has no step, or there are too many points.
        """
        lists = [values.listed for values in self.parameters.values()]
        for name, values in zip(self.parameters, lists, strict=True):
            if not values:
                raise UsageFault(
                    f"--sampler grid needs a step for --{name.partition('[')[0]}.",
                    "Write LOW:HIGH:STEP, or a list of values.",
                )
        if math.prod(map(len, lists)) > LARGEST_GRID:
            raise UsageFault(f"The grid has over {LARGEST_GRID:,} points.", "Use --sampler tpe.")
        first = list(self.first_points().values())
        points = [dict(zip(self.parameters, p, strict=True)) for p in itertools.product(*lists)]
        different = {tuple(point.items()): point for point in (*first, *map(self._kept, points))}
        return list(different.values())

    def _kept(self, point: Point) -> Point:
        """Return a point without the ratios that its method does not take."""
        return {name: value if self.takes(point, name) else None for name, value in point.items()}


def group_of(groups: Sequence[str], name: str) -> str:
    """Return the first group that a tensor belongs to; `*` where there are none.

    Example:
        >>> group_of(["encoder", "*"], "model.encoder.conv1.bias"), group_of([], "x")
        ('encoder', '*')
    """
    return next((g for g in groups if Pattern(g, g, 1.0).matches(name)), REST)


def _own_lambdas(lambdas: Sequence[tuple[str, str, Any]]) -> dict[str, Any]:
    """Return the settings of a delta with lambdas of its own, each of a group and a part."""
    scales = {scale for _, _, scale in lambdas}
    if len(scales) == 1:
        return {"scale": scales.pop()}
    # lambda is 1, and the factors are the lambdas
    found: dict[str, Any] = {"scale": 1.0}
    for group, part, scale in lambdas:
        kind = part if part in PARTS else "coef"
        found[kind] = (*found.get(kind, ()), f"{group}={scale:g}")
    return found


def split_methods(given: str | Sequence[str] | None) -> list[str]:
    """Return the methods that a text, or several, name, separated by commas.

    Parameters have commas between them too: what has no colon of its own, and an equals sign, is
    one more parameter of the method before it.

    Example:
        >>> split_methods("lors,ties:k=0.3,tsv_m"), split_methods(["a:x=1,y=2", "b"])
        (['lors', 'ties:k=0.3', 'tsv_m'], ['a:x=1,y=2', 'b'])
    """
    found: list[str] = []
    for text in several(given or ()):
        for number, item in enumerate(map(str.strip, str(text).split(","))):
            if number and "=" in item and ":" not in item:
                found[-1] += f",{item}"
            else:
                found.append(item)
    return found


def default_scales(method: str | Sequence[str] | None, sampler: str = "") -> str:
    """Return the lambdas to choose from by default: from a third of the method's own to ten thirds.

    Those that are learned may be up to ten times as large as it, in both directions.

    Args:
        method: as in `make_space`; those of several are task arithmetic's.
        sampler: of the search.

    Example:
        >>> default_scales(None), default_scales("tsv_m"), default_scales("tsv_m,ties")
        ('0.05:0.5', '0.33:3.3', '0.05:0.5')
    """
    methods = split_methods(method)
    own = default_scale(methods[0] if len(methods) == 1 else None)
    if sampler == GRADIENT:
        return f"{-BOUND * own:g}:{BOUND * own:g}"
    return f"{own / 3:.2g}:{own * 10 / 3:.2g}"


def make_space(
    base: str,
    deltas: Sequence[str],
    texts: Mapping[str, str | float | None],
    per_delta: str,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    method: str | Sequence[str] | None = None,
    by: str = "",
    sampler: str = "",
) -> Space:
    """Make a space from options.

    Args:
        base: path of the pretrained model.
        deltas: their paths.
        texts: kind -> its option's text or number; None or missing where it was not given.
        per_delta: kinds, separated by commas.
        include: shell patterns of further tensors to prune.
        exclude: shell patterns of tensors to merge unpruned.
        method: of every point, or several to choose from, as `split_methods` reads them; None to
            have it follow from the ratios.
        by: of BY, separated by commas, what lambda differs by.
        sampler: of the search; lambdas of one that learns have a start, and all else is fixed.

    Raises:
        UsageFault: everything that is wrong with them.
    """
    methods = split_methods(method)
    faults = [
        fault for text in methods for fault in method_faults(text) or statistics_refused(text)
    ]
    given = {kind: str(texts[kind]) for kind in DELTA_SETTINGS if texts.get(kind) is not None}
    if sampler != GRADIENT and not faults:
        taken = {ratio for text in methods for ratio in find_method(text).ratios}
        given = {ratio: DEFAULTS[ratio] for ratio in RATIOS if ratio in taken} | given
    values = {}
    for kind, text in given.items():
        try:
            values[kind] = parse_values(kind, text)
        except UsageFault as fault:
            faults.append(fault)
    if methods and not faults:
        faults += _ratio_faults(methods, values)
        specs = [find_method(text).spec for text in methods]
        methods = list(dict.fromkeys(specs))
        faults += [
            UsageFault(f"--method names {spec} twice.", "Name each method once.")
            for spec in methods
            if specs.count(spec) > 1
        ]
    kinds = frozenset(word.strip() for word in per_delta.split(",") if word.strip())
    for kind in sorted(kinds - given.keys()):
        what, remedy = "no such parameter.", "Name svp, mp or scale."
        if kind in DELTA_SETTINGS:
            what, remedy = "it is not searched.", f"Give --{kind} as well."
        faults.append(UsageFault(f"--per-delta {kind}: {what}", remedy))
    wanted = [word.strip() for word in by.split(",") if word.strip()]
    faults += _by_faults(wanted)
    if sampler == GRADIENT:
        faults += _learning_faults(methods, values, kinds)
    if not deltas:
        faults.append(UsageFault("There are no deltas.", "Name at least one after the base."))
    raise_all(faults)
    space = Space(
        base, tuple(deltas), values, kinds, tuple(include), tuple(exclude),
        methods[0] if len(methods) == 1 else None, tuple(word for word in BY if word in wanted),
        methods=tuple(methods) if len(methods) > 1 else (),
    )  # fmt: skip
    if sampler == GRADIENT:
        space = _with_start(space)
    if (include or exclude) and not space.prunes:
        raise UsageFault(
            "Nothing is pruned, so --include and --exclude have no use.",
            "Give --svp or --mp as well, or omit the patterns.",
        )
    return space


def _prunes_always(method: str) -> bool:
    """Return whether a method prunes without ratios."""
    return find_method(method).prunes(None, None)


def _ratio_faults(methods: Sequence[str], values: Mapping[str, Values]) -> list[LorsmergeError]:
    """Return the faults of values that leave a method without a ratio, or give all one too many."""
    faults: list[LorsmergeError] = []
    for ratio in RATIOS:
        takers = [method for method in methods if ratio in find_method(method).ratios]
        if takers and ratio not in values:
            what = f"--method {takers[0]} needs --{ratio}."
            faults.append(UsageFault(what, f"Write {EXAMPLES[ratio]}, say."))
        elif takers and None in values[ratio].choices:
            what = (
                f"--method {takers[0]} needs a number for --{ratio}, and `none` is among its "
                "values."
            )
            faults.append(UsageFault(what, "Remove it, or --method."))
        elif ratio in values and not takers:
            what = f"--method {','.join(methods)} takes no --{ratio}."
            faults.append(UsageFault(what, "Drop one of the two."))
    return faults


def _learning_faults(
    methods: Sequence[str], values: Mapping[str, Values], per_delta: frozenset[str]
) -> list[LorsmergeError]:
    """Return the faults of a space whose lambdas are to be learned by gradient."""
    faults: list[LorsmergeError] = []
    what = f"--sampler {GRADIENT}"
    if len(methods) > 1:
        faults.append(UsageFault(f"{what} learns lambdas of one method.", "Name one."))
    for text in methods:
        if not method_faults(text) and not find_method(text).combined.linear:
            faults.append(
                UsageFault(
                    f"{what}: the update of {text} is no sum of the deltas times their lambdas, so "
                    "it has no gradient by them here.",
                    "Name a method that sums or averages (ta, wa, lors, svp, mp), or use "
                    "--sampler tpe.",
                )
            )
    for ratio in RATIOS:
        if ratio in values and len(values[ratio].choices) != 1:
            faults.append(
                UsageFault(f"{what} takes one --{ratio}: only lambdas are learned.", "Give one.")
            )
    for kind in sorted(per_delta - {"scale"}):
        faults.append(
            UsageFault(
                f"--per-delta {kind}: {what} learns lambdas alone.", "Give --per-delta scale."
            )
        )
    scales = values.get("scale")
    if scales is not None and (len(scales.choices) > 1 or scales.step is not None):
        faults.append(
            UsageFault(
                f"{what}: --scale is a number that lambdas begin at, or the range LOW:HIGH that "
                "they stay in.",
                "Write --scale 0.3 or --scale 0:1, say.",
            )
        )
    return faults


def _with_start(space: Space) -> Space:
    """Return the space with what its lambdas begin at, and a range of them."""
    scales = space.values["scale"]
    start = default_scale(space.method)
    if scales.choices:
        start = float(scales.choices[0] or 0.0)
        bound = BOUND * (abs(start) or default_scale(space.method))
        scales = Values(low=-bound, high=bound)
    start = min(max(start, scales.low), scales.high)
    return replace(space, values={**space.values, "scale": scales}, start=start)


def _by_faults(by: Sequence[str]) -> list[LorsmergeError]:
    return [
        UsageFault(f"--by {word}: unknown.", f"Name {', '.join(BY)}, separated by commas.")
        for word in by
        if word not in BY
    ]
