"""A recipe: everything that decides what a merge writes, from options or from a file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lorsmerge_cli.core.methods import (
    METHODS,
    Method,
    compose,
    find_method,
    method_faults,
    method_of,
)
from lorsmerge_cli.errors import (
    LorsmergeError,
    UnreadableFile,
    UsageFault,
    did_you_mean,
    raise_all,
)
from lorsmerge_cli.inputs import FilePath, json_object, parse_toml, read_document, several
from lorsmerge_cli.outputs import atomic_file
from lorsmerge_cli.quoting import toml_value
from lorsmerge_cli.recipe.coefficients import (
    OwnRules,
    check_own_rules,
    check_rules,
    norm_factors,
    scale_with,
)

RATIOS = ("svp", "mp")
LIST_KEYS = {  # what each lists, and an example
    "include": ("patterns", '["*.fc1.weight"]'), "exclude": ("patterns", '["*.fc1.weight"]'),
    "coef": ("rules", '["decoder=0.5"]'),
    "stats": ("paths", '["ca.stats", "de.stats"]'),
    "low_rank": ("rules", '["decoder=0.5"]'), "sparse": ("rules", '["decoder=0.5"]'),
}  # fmt: skip
DELTA_SETTINGS = (*RATIOS, "scale")
OWN_RULES = ("coef", "low_rank", "sparse")  # of a delta
DELTA_KEYS = ("path", "for_task", *DELTA_SETTINGS, *OWN_RULES)
SETTINGS = re.compile(r"^(?P<path>.+?):(?P<settings>[A-Za-z_]+=[^:/]*)$")
FORM = "Write DELTA:svp=0.05,mp=0.4,scale=0.2 with any of the three, without blanks."
CARD_BLOCK = "toml lorsmerge-recipe"  # info string of the block of a model card that is a recipe
HEAD = re.compile(r"\s*---[ \t]*\n.*?\n---[ \t]*(?:\n|$)", re.DOTALL)  # a card's YAML
FENCE = re.compile(r" {0,3}(?P<signs>`{3,}(?=[^`]*$)|~{3,})[ \t]*(?P<info>.*?)[ \t]*")
LARGEST = 10**300  # of an integer: a float can be as large
LARGEST_SCALE = 3.4e38  # of a lambda: PyTorch multiplies a float32 by none beyond its range
LONGEST = 80  # characters of a wrong value that are shown
TYPICAL = {"svp": "--svp 0.03", "mp": "--mp 0.4"}


@dataclass(frozen=True)
class DeltaEntry:
    """One delta of a recipe; None where the recipe's own value holds.

    Attributes:
        path: a delta file or a fine-tuned checkpoint.
        svp: singular value ratio kept.
        mp: magnitude ratio kept.
        scale: coefficient lambda.
        for_task: the task that is taken from a file of TALL masks; None for a delta.
        coef: rules of factors of its lambda, patterns alone, beside those of the recipe.
        low_rank, sparse: rules of factors of lambda of its low-rank and its sparse part, in place of
            `coef`, in tensors that are pruned, here or before.
    """

    path: str
    svp: float | None = None
    mp: float | None = None
    scale: float | None = None
    for_task: str | None = None
    coef: tuple[str, ...] = ()
    low_rank: tuple[str, ...] = ()
    sparse: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The path, with the task that is taken from it."""
        return self.path if self.for_task is None else f"{self.path} for {self.for_task}"

    @property
    def own_rules(self) -> OwnRules:
        """The rules of this delta alone."""
        return OwnRules(self.coef, self.low_rank, self.sparse)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a merge writes.

    Attributes:
        base: the checkpoint the deltas are added to.
        deltas: what is added.
        method: as `find_method` reads it, None to have it follow from the ratios.
        svp, mp, scale: ratios and lambda of deltas without their own.
        include: shell patterns of further tensors to prune.
        exclude: shell patterns of tensors to merge unpruned.
        dtype: of the output, None for the base's.
        coef: rules of factors that lambda is multiplied by, as `parse_rule` reads them.
        stats: files of statistics of the deltas' fine-tunes, in any order.
        expected: fingerprints of base, deltas and statistics that a `lorsmerge.json` recorded.
        expected_contents: hashes of all their bytes, empty strings where it has none.
        source: the file it was read from.
    """

    base: str
    deltas: tuple[DeltaEntry, ...]
    method: str | None = None
    svp: float | None = None
    mp: float | None = None
    scale: float | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    dtype: str | None = None
    coef: tuple[str, ...] = ()
    stats: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()
    expected_contents: tuple[str, ...] = ()
    source: Path | None = field(default=None, compare=False)

    def resolved(self, *, calibrated: bool = False) -> Recipe:
        """Return the same merge with every default written out, and ratios and scale per delta.

        Args:
            calibrated: whether the statistics that the method needs are made later.

        Raises:
            UsageFault: a value out of range, or a method and ratios that contradict each other.
        """
        raise_all(list(_value_faults(self)))
        shared = {key: getattr(self, key) for key in DELTA_SETTINGS}
        deltas = [replace(delta, **shared | _settings(delta)) for delta in self.deltas]
        given = set[str]().union(*map(_settings, deltas))
        method = self.method or method_of([ratio for ratio in RATIOS if ratio in given])
        found = find_method(method)
        lacking = () if calibrated else _statistics_faults(found, self.stats)
        raise_all([*_method_faults(found, deltas), *lacking])
        scale = scale_with(self.coef)
        scale = found.scale if scale is None else scale
        deltas = [
            # what a mask keeps is added whole
            replace(delta, **{"scale": 1.0 if delta.for_task else scale} | _settings(delta))
            for delta in deltas
        ]
        return replace(self, deltas=tuple(deltas), method=found.spec, svp=None, mp=None, scale=None)

    @property
    def own_rules(self) -> tuple[OwnRules, ...]:
        """The rules of each delta alone."""
        return tuple(entry.own_rules for entry in self.deltas)

    @property
    def rules(self) -> tuple[str, ...]:
        """All rules, those of one delta with its number and the part they are for.

        Example:
            >>> Recipe("base", (DeltaEntry("ca", sparse=("mlp=2",)),), coef=("decoder=0.5",)).rules
            ('decoder=0.5', 'delta 1, sparse: mlp=2')
        """
        own = [
            f"delta {number}{'' if kind == 'coef' else f', {kind}'}: {text}"
            for number, rules in enumerate(self.own_rules, 1)
            for kind, texts in rules.by_kind.items()
            for text in texts
        ]
        return (*self.coef, *own)

    @property
    def chosen_method(self) -> Method:
        """The method of a resolved recipe."""
        return find_method(self.method or method_of(()))

    def weighed(self, norms: Sequence[float]) -> Recipe:
        """Return the resolved recipe with rules by norms turned into the deltas' own lambdas.

        Args:
            norms: L2 norm of each delta, none of them zero.

        Example:
            >>> entries = DeltaEntry("ca", scale=0.5), DeltaEntry("de", scale=0.5)
            >>> found = Recipe("base", entries, coef=("metagpt",)).weighed([1.0, 3.0])
            >>> [entry.scale for entry in found.deltas], found.coef
            ([0.05, 0.45], ())
        """
        factors, others = norm_factors(self.coef, norms)
        deltas = tuple(
            replace(entry, scale=(entry.scale or 0.0) * factor)
            for entry, factor in zip(self.deltas, factors, strict=True)
        )
        return replace(self, deltas=deltas, coef=tuple(others))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, those of `RECIPE_KEYS` that are set and always `deltas`."""
        fields = {key: getattr(self, key) for key in RECIPE_KEYS} | {
            "deltas": [_set_fields(delta) for delta in self.deltas],
            "include": list(self.include),
            "exclude": list(self.exclude),
            "coef": list(self.coef),
            "stats": list(self.stats),
        }
        return {
            key: value
            for key, value in fields.items()
            if key == "deltas" or value not in (None, [])
        }

    def to_toml(self) -> str:
        """Return the recipe as TOML, which `load_recipe` reads, with its method's parameters."""
        fields = self.to_dict()
        if self.method is not None and not method_faults(self.method):
            fields["method"] = find_method(self.method).full_spec
        deltas = fields.pop("deltas")
        lines = [f"{key} = {toml_value(value)}" for key, value in fields.items()]
        for delta in deltas:
            lines += ["", "[[deltas]]"]
            lines += [f"{key} = {toml_value(value)}" for key, value in delta.items()]
        return "\n".join(lines) + "\n"


def _set_fields(delta: DeltaEntry) -> dict[str, Any]:
    return {
        key: list(value) if key in OWN_RULES else value
        for key, value in asdict(delta).items()
        if value not in (None, ())
    }


def _settings(delta: DeltaEntry) -> dict[str, Any]:
    return {key: value for key, value in _set_fields(delta).items() if key in DELTA_SETTINGS}


def parse_delta(text: str) -> DeltaEntry:
    """Read `ca.delta` or `ca.delta:svp=0.05,mp=0.4,scale=0.2`.

    Raises:
        UsageFault: a setting that is unknown, repeated or not a number.
    """
    if Path(text).exists():
        return DeltaEntry(text)
    match = SETTINGS.match(text)
    if match is None:
        path, colon, rest = text.rpartition(":")
        if colon and Path(path).exists():
            raise UsageFault(f"{text}: {rest!r} is not a setting of {path}.", FORM)
        return DeltaEntry(text)
    if SETTINGS.match(match["path"]):
        raise UsageFault(f"{text}: settings are separated by commas.", FORM)
    settings: dict[str, Any] = {}
    for item in match["settings"].split(","):
        key, _, value = item.partition("=")
        if key not in DELTA_SETTINGS:
            meant = did_you_mean(key, DELTA_SETTINGS)
            raise UsageFault(f"{text}: {key!r} is not a setting of a delta.{meant}", FORM)
        if key in settings:
            raise UsageFault(f"{text}: {key!r} is given twice.")
        try:
            settings[key] = float(value)
        except ValueError:
            raise UsageFault(f"{text}: {key}={value!r} is not a number.") from None
    return DeltaEntry(match["path"], **settings)


def wanted_recipe(
    base: FilePath | None,
    deltas: Sequence[FilePath | DeltaEntry] | FilePath | DeltaEntry | None,
    *,
    file: FilePath | None = None,
    include: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str | None = None,
    coef: Sequence[str] | str | None = None,
    prune: str | None = None,
    combine: str | None = None,
    stats: Sequence[FilePath] | FilePath | None = None,
    from_masks: FilePath | None = None,
    for_task: str | None = None,
    **settings: Any,
) -> Recipe:
    """Return the recipe of a base, deltas and settings, or read it from a file.

    Args:
        base: the checkpoint the deltas are added to.
        deltas: what is added, with or without settings of their own as `parse_delta` reads them.
        file: as in `load_recipe`; nothing else may be given beside it.
        include: shell patterns of further tensors to prune; None for none.
        exclude: shell patterns of tensors to merge unpruned; None for none.
        coef: rules of factors of lambda; None for none.
        prune: a pruner and its settings, ratios among them, in place of a method.
        combine: a combiner and its settings, in place of a method.
        stats: files of statistics of the deltas' fine-tunes; None for none.
        from_masks: a file of TALL masks, in place of deltas.
        for_task: the task whose model is made from it.
        **settings: the other attributes of `Recipe`, None for their defaults.

    Raises:
        UsageFault: no base, a base beside a file, settings of a delta, a pruner or a combiner that
            are wrong, or two that say the same thing.
        UnreadableFile: as `load_recipe`.
    """
    entries, include, exclude, coef = (
        several(given or ()) for given in (deltas, include, exclude, coef)
    )
    files = tuple(map(str, several(stats or ())))
    if file is not None:
        given = (
            base, entries, include, exclude, coef, prune, combine, files, from_masks, for_task,
            *settings.values(),
        )  # fmt: skip
        if any(value not in (None, ()) for value in given):
            raise UsageFault(
                f"--recipe {file} already holds base, deltas and settings.",
                "Give only -o and machine options beside it; edit the recipe to change the merge.",
            )
        return load_recipe(Path(file))
    parsed = [item if isinstance(item, DeltaEntry) else parse_delta(str(item)) for item in entries]
    if from_masks is not None or for_task is not None:
        others = {
            "deltas": entries, "--prune": prune, "--combine": combine, "--stats": files,
            "--include": include, "--exclude": exclude,
        } | {f"--{key}": settings.get(key) for key in ("method", *RATIOS)}  # fmt: skip
        useless = [name for name, value in others.items() if value not in (None, ())]
        parsed = [_masked(from_masks, for_task, useless)]
    if base is None:
        raise UsageFault("There is no base.", "Write `lorsmerge merge BASE DELTA...`.")
    recipe = Recipe(
        str(base),
        tuple(parsed),
        include=include,
        exclude=exclude,
        coef=coef,
        stats=files,
        **settings,
    )
    return recipe if (prune, combine) == (None, None) else _composed(recipe, prune, combine)


def _masked(file: FilePath | None, task: str | None, others: Sequence[str]) -> DeltaEntry:
    """Return the one entry of a merge that takes a task from a file of TALL masks.

    Args:
        file: given with --from.
        task: given with --for.
        others: what else is given that says what is merged, and how.
    """
    if file is None:
        raise UsageFault(
            f"--for {task} is the task of a file of TALL masks, and none is given.",
            "Give it with --from; `lorsmerge merge BASE DELTA... --masks 0.6 -o x.delta` makes one.",
        )
    if others:
        raise UsageFault(
            f"--from {file} says what is added to the base, and {', '.join(others)} "
            f"{'has' if len(others) == 1 and others[0] != 'deltas' else 'have'} no use beside it.",
            "Omit them: --for, --scale and --coef are what can be chosen. To merge deltas, omit --from.",
        )
    if task is None:
        from lorsmerge_cli.deltas.tall import TallFile

        tasks = TallFile(Path(file)).tasks
        what = f"--from {file} has masks for several tasks, and no --for says which one to make."
        raise UsageFault(what, f"Give --for and one of its tasks: {', '.join(tasks)}.")
    return DeltaEntry(str(file), for_task=task)


def _composed(recipe: Recipe, prune: str | None, combine: str | None) -> Recipe:
    """Return the recipe with the method and the ratios of a pruner and a combiner."""
    if recipe.method is not None:
        raise UsageFault(
            f"--method {recipe.method} is a pruner and a combiner already.",
            "Give --method, or --prune and --combine.",
        )
    holders = (recipe, *recipe.deltas)
    given = [r for r in RATIOS if any(getattr(holder, r) is not None for holder in holders)]
    if prune is None and given:  # which say how to prune
        prune = find_method(method_of(given)).pruner
    method, ratios = compose(prune, combine)
    for ratio in ratios:
        if getattr(recipe, ratio) is not None:
            raise UsageFault(f"{ratio} is given twice, as --{ratio} and in --prune {prune}.")
    return replace(recipe, method=method, **ratios)  # type: ignore[arg-type]


def pruning_method(source: Path, svp: float | None, mp: float | None, method: str | None) -> str:
    """Return the method that prunes one delta: the one given, or what the ratios say.

    Raises:
        UsageFault: ratios out of range, a method that they contradict, nothing to prune by, or a
            method of more than ratios.
    """
    entry = DeltaEntry(str(source), svp, mp)
    found = Recipe("", (entry,), method).resolved().chosen_method
    if found.ratios and found == METHODS.get(found.spec):
        return found.spec
    if found.pruner is None:
        raise UsageFault("Nothing says how much to keep.", "Give --svp 0.03 and --mp 0.4, say.")
    able = [name for name, known in METHODS.items() if known.ratios]
    raise UsageFault(
        f"A delta cannot be stored as --method {found.spec} prunes it.",
        f"Give {' or '.join(able)}, or merge at once: `lorsmerge merge --method {found.spec}`.",
    )


def load_recipe(path: Path) -> Recipe:
    """Read a TOML recipe, the one in a model card, or the `lorsmerge.json` that a merge left.

    Raises:
        UnreadableFile: no such file, or not TOML or JSON.
        UsageFault: a key that is unknown, missing or of the wrong type.
    """
    try:
        text = read_document(path).decode("utf-8")
        if path.suffix == ".json":
            return _recorded_recipe(json_object(text), path)
        table = parse_toml(_toml_of(text, path))
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror}.", "Check the path.") from None
    except ValueError as error:
        raise UnreadableFile(
            f"{path} is not a recipe: {error}.", "See examples/recipes/."
        ) from None
    return replace(recipe_of(table, str(path)), source=path)


def _recorded_recipe(document: Mapping[str, Any], path: Path) -> Recipe:
    """Return the recipe in a `lorsmerge.json`, which expects the base and deltas it is of."""
    for key, wanted in (("recipe", dict), ("base", dict), ("deltas", list)):
        if not isinstance(document.get(key), wanted):
            raise ValueError(f"`{key}` is missing or not a {wanted.__name__}")
    fingerprints, contents = [], []
    statistics = document.get("statistics", [])
    if not isinstance(statistics, list):
        raise ValueError("`statistics` is not a list")
    for record in (document["base"], *document["deltas"], *statistics):
        found = record.get("fingerprint") if isinstance(record, dict) else None
        if not isinstance(found, str):
            raise ValueError("the fingerprint of its base or of a delta is missing or not a str")
        fingerprints.append(found)
        contents.append(str(record.get("content", "")))
    return replace(
        recipe_of(document["recipe"], str(path)), expected=tuple(fingerprints),
        expected_contents=tuple(contents), source=path,
    )  # fmt: skip


def _toml_of(text: str, path: Path) -> str:
    """Return a recipe's TOML: the whole text, or the block of a model card that is marked as one.

    Earlier versions wrote cards without a mark: in those it is the only block of TOML.
    """
    if path.suffix.lower() != ".md":
        return text
    blocks = list(_blocks(text))
    marked = [block for info, block in blocks if info.split() == CARD_BLOCK.split()]
    found = marked or [block for info, block in blocks if info.split()[:1] == ["toml"]]
    if not found:
        raise ValueError("the card holds no block of TOML")
    if len(found) > 1:
        which = f"blocks marked `{CARD_BLOCK}`" if marked else "blocks of TOML"
        raise ValueError(
            f"the card holds {len(found)} {which}, and which one is its recipe cannot be told; "
            "copy the right one to a .toml file"
        )
    return found[0]


def _blocks(card: str) -> Iterator[tuple[str, str]]:
    """Yield info string and text of a card's fenced blocks, as CommonMark defines them."""
    card = card.replace("\r\n", "\n")
    head = HEAD.match(card)
    opened, info, inside = "", "", list[str]()
    for line in card[head.end() if head else 0 :].split("\n"):
        match = FENCE.fullmatch(line)
        if not opened:
            if match:
                opened, info, inside = match["signs"], match["info"], []
        elif match and match["signs"].startswith(opened) and not match["info"]:
            yield info, "\n".join([*inside, ""])
            opened = ""
        else:
            inside.append(line)
    if opened:  # to the end of the card
        yield info, "\n".join(inside)


KEY_TYPES: dict[str, tuple[type, ...]] = {
    "base": (str,), "deltas": (list,), "method": (str,), "svp": (float, int), "mp": (float, int),
    "scale": (float, int), "coef": (list,), "include": (list,), "exclude": (list,), "dtype": (str,),
    "stats": (list,), "path": (str,), "for_task": (str,), "low_rank": (list,), "sparse": (list,),
}  # fmt: skip
OF_DELTAS = ("path", "for_task", "low_rank", "sparse")
RECIPE_KEYS = tuple(key for key in KEY_TYPES if key not in OF_DELTAS)


def recipe_of(table: Mapping[str, Any], path: str) -> Recipe:
    """Take a recipe from plain values.

    Args:
        table: as `Recipe.to_dict` makes them.
        path: of the file, for messages.

    Raises:
        UsageFault: a key that is unknown, missing or of the wrong type.
    """
    raise_all(list(_table_faults(table, path)))
    numbers: dict[str, Any] = {key: float(table[key]) for key in DELTA_SETTINGS if key in table}
    deltas = tuple(
        DeltaEntry(
            entry["path"], **{key: _own_value(key, entry[key]) for key in entry if key != "path"}
        )
        for entry in table["deltas"]
    )
    return Recipe(
        table["base"], deltas, table.get("method"), **numbers,
        include=tuple(table.get("include", ())), exclude=tuple(table.get("exclude", ())),
        dtype=table.get("dtype"), coef=tuple(table.get("coef", ())),
        stats=tuple(table.get("stats", ())),
    )  # fmt: skip


def _own_value(key: str, value: Any) -> Any:
    if key in OWN_RULES:
        return tuple(value)
    return float(value) if key in DELTA_SETTINGS else value


def _table_faults(table: Mapping[str, Any], path: str) -> Iterator[LorsmergeError]:
    yield from _key_faults(table, RECIPE_KEYS, path)
    entries = table.get("deltas", [])
    for number, entry in enumerate(entries if isinstance(entries, list) else (), 1):
        where = f"{path}, delta {number}"
        if not isinstance(entry, dict):
            yield UsageFault(f"{where}: a table is needed.", "Write [[deltas]].")
            continue
        yield from _key_faults(entry, DELTA_KEYS, where)
        if "path" not in entry:
            yield UsageFault(f"{where}: `path` is missing.")
    for key in ("base", "deltas"):
        if key not in table:
            yield UsageFault(f"{path}: `{key}` is missing.")


def _key_faults(
    table: Mapping[str, Any], known: Sequence[str], where: str
) -> Iterator[LorsmergeError]:
    for key, value in table.items():
        if key not in known:
            meant = did_you_mean(key, known)
            yield UsageFault(f"{where}: unknown key `{key[:LONGEST]}`.{meant}")
        elif not isinstance(value, KEY_TYPES[key]) or isinstance(value, bool):
            wanted = " or ".join(type_.__name__ for type_ in KEY_TYPES[key])
            yield UsageFault(f"{where}: `{key}` = {_shown(value)} is not a {wanted}.")
        elif isinstance(value, int) and not -LARGEST <= value <= LARGEST:
            yield UsageFault(f"{where}: `{key}` = {_shown(value)} is not a finite number.")
        elif key in LIST_KEYS and not all(isinstance(item, str) for item in list(value)):  # type: ignore[call-overload]
            listed, example = LIST_KEYS[key]
            yield UsageFault(
                f"{where}: `{key}` = {_shown(value)} is not a list of {listed}.",
                f"Write {example}, say.",
            )


def _shown(value: object) -> str:
    """Show a value of a recipe in at most `LONGEST` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python writes no integer of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def unpruned_method_faults(name: str | None) -> list[LorsmergeError]:
    """Return the faults of a method that must take no ratios; None stands for no method."""
    faults = method_faults(name) or statistics_refused(name)
    if name is None or faults or not find_method(name).ratios:
        return faults
    return [
        UsageFault(
            f"--method {name} prunes, and needs ratios.",
            "Prune the deltas before, with `lorsmerge prune`, or score what `lorsmerge merge` makes.",
        )
    ]


def statistics_refused(method: str | None) -> list[LorsmergeError]:
    """Return a fault if a method needs statistics over audio, which `merge` alone takes."""
    if method is None or method_faults(method) or not find_method(method).statistics:
        return []
    what = f"Method {method} needs statistics over audio, which `merge` alone takes."
    return [
        UsageFault(
            what,
            "Merge with it first, with --calibrate AUDIO or --stats, and use the merged model.",
        )
    ]


def _value_faults(recipe: Recipe) -> Iterator[LorsmergeError]:
    if not recipe.deltas:
        yield UsageFault("There are no deltas to merge.", "Name at least one after the base.")
    yield from method_faults(recipe.method)
    holders: list[tuple[str, Recipe | DeltaEntry]] = [("", recipe)]
    holders += [(f"{delta.path}: ", delta) for delta in recipe.deltas]
    for where, values in holders:
        for ratio in RATIOS:
            value = getattr(values, ratio)
            if value is not None and not 0 <= value <= 1:
                yield UsageFault(
                    f"{where}{ratio} = {value} is not between 0 and 1.",
                    "It is the share that is kept: 0.03 keeps 3%.",
                )
        if values.scale is not None and not abs(values.scale) < LARGEST_SCALE:
            known = "too large" if abs(values.scale) < math.inf else "not a finite number"
            yield UsageFault(f"{where}scale = {values.scale} is {known}.")
    for delta in recipe.deltas:
        yield from check_own_rules(delta.own_rules, delta.path)
    yield from check_rules(recipe.coef)


def _method_faults(method: Method, deltas: Sequence[DeltaEntry]) -> Iterator[LorsmergeError]:
    takes = method.ratios
    absent = set(takes)
    for delta in deltas:
        given = [ratio for ratio in RATIOS if getattr(delta, ratio) is not None]
        absent -= {*given}
        extra = [ratio for ratio in given if ratio not in takes]
        if extra:
            yield UsageFault(
                f"{delta.path}: method {method.spec} takes no --{extra[0]}.",
                "Drop the ratio or the method: the ratios alone say which method is meant.",
            )
        elif given and not any(getattr(delta, ratio) for ratio in given):
            yield UsageFault(
                f"{delta.path}: {' and '.join(given)} 0 would leave nothing of the delta.",
                "A ratio is the share that is kept; omit both to merge the delta whole.",
            )
    if absent:
        lacking = [ratio for ratio in takes if ratio in absent]
        yield UsageFault(
            f"Method {method.spec} needs {' and '.join(lacking)}, the share it keeps.",
            f"Give {' and '.join(TYPICAL[ratio] for ratio in lacking)}, say; the paper chose "
            "from svp 0.01 to 0.05 and mp 0.1 to 0.6.",
        )


def _statistics_faults(method: Method, files: Sequence[str]) -> Iterator[LorsmergeError]:
    """Yield a fault for statistics that a method lacks, or has no use for."""
    kind = method.statistics
    if kind and not files:
        yield UsageFault(
            f"Method {method.spec} weighs deltas by statistics of their fine-tunes over audio, and there "
            "are none.",
            f"Make them with `lorsmerge stats FINETUNE --data AUDIO --kind {kind} -o x.stats` for "
            "each, and give each with --stats; or let `merge` make them: --calibrate AUDIO.",
        )
    elif files and not kind:
        weighing = [name for name, entry in METHODS.items() if entry.statistics]
        yield UsageFault(
            f"Method {method.spec} takes no statistics, and {files[0]} is given.",
            f"Omit --stats, or give --method {' or '.join(weighing)}.",
        )
    if repeated := sorted({path for path in files if files.count(path) > 1}):
        yield UsageFault(f"--stats {repeated[0]} is given twice.")


def save(recipe: Recipe, path: Path, *, force: bool, heading: str = "") -> None:
    """Write a recipe as TOML, below a heading; replace a file that exists only with `force`.

    Raises:
        OutputFault: the file cannot be written.
    """
    with atomic_file(path, force=force) as partial:
        partial.write_text(heading + recipe.to_toml(), encoding="utf-8")
