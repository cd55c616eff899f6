"""A recipe: everything that decides what a merge writes, from options or from a file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lorsmerge_cli.core.methods import METHODS, method_of
from lorsmerge_cli.errors import LorsmergeError, UnreadableFile, UsageFault, raise_all
from lorsmerge_cli.inputs import FilePath, json_object, parse_toml, read_document, several
from lorsmerge_cli.outputs import atomic_file
from lorsmerge_cli.quoting import toml_value

RATIOS = ("svp", "mp")
PATTERN_KEYS = ("include", "exclude")
DELTA_KEYS = ("path", "svp", "mp", "scale")
SETTINGS = re.compile(r"^(?P<path>.+?):(?P<settings>[A-Za-z_]+=[^:/]*)$")
FORM = "Write DELTA:svp=0.05,mp=0.4,scale=0.2 with any of the three, without blanks."
CARD_BLOCK = "toml lorsmerge-recipe"  # info string of the block of a model card that is a recipe
HEAD = re.compile(r"\s*---[ \t]*\n.*?\n---[ \t]*(?:\n|$)", re.DOTALL)  # a card's YAML
FENCE = re.compile(r" {0,3}(?P<signs>`{3,}(?=[^`]*$)|~{3,})[ \t]*(?P<info>.*?)[ \t]*")
LARGEST = 10**300  # of an integer: a float can be as large
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
    """

    path: str
    svp: float | None = None
    mp: float | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Recipe:
    """A merge, as asked for.

    Attributes:
        base: the checkpoint the deltas are added to.
        deltas: what is added.
        method: a name in METHODS, None to have it follow from the ratios.
        svp: ratio for the deltas that name none.
        mp: ratio for the deltas that name none.
        scale: lambda for the deltas that name none.
        include: patterns of further tensors to prune.
        exclude: patterns of tensors to merge unpruned.
        dtype: of the output, None for the base's.
        expected: fingerprints of base and deltas that a `lorsmerge.json` recorded.
        expected_contents: hashes of all their bytes, as far as it has them.
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
    expected: tuple[str, ...] = ()
    expected_contents: tuple[str, ...] = ()
    source: Path | None = field(default=None, compare=False)

    def resolved(self) -> Recipe:
        """The same merge with every default written out, each delta with ratios and scale of its own.

        Raises:
            UsageFault: a value out of range, or a method and ratios that contradict each other.
        """
        raise_all(_value_faults(self))
        deltas = [
            replace(
                delta,
                svp=self.svp if delta.svp is None else delta.svp,
                mp=self.mp if delta.mp is None else delta.mp,
                scale=self.scale if delta.scale is None else delta.scale,
            )
            for delta in self.deltas
        ]
        method = self.method or _method_of(deltas)
        raise_all(_method_faults(method, deltas))
        deltas = [
            replace(delta, scale=METHODS[method].scale if delta.scale is None else delta.scale)
            for delta in deltas
        ]
        return replace(self, deltas=tuple(deltas), method=method, svp=None, mp=None, scale=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, what is unset left out."""
        fields = {key: value for key, value in asdict(self).items() if value not in (None, (), [])}
        for key in ("expected", "expected_contents", "source"):
            fields.pop(key, None)
        fields["deltas"] = [
            {key: value for key, value in asdict(delta).items() if value is not None}
            for delta in self.deltas
        ]
        for key in PATTERN_KEYS:
            if key in fields:
                fields[key] = list(fields[key])
        return fields

    def to_toml(self) -> str:
        """The recipe as `load_recipe` reads it."""
        fields = self.to_dict()
        deltas = fields.pop("deltas")
        lines = [f"{key} = {toml_value(value)}" for key, value in fields.items()]
        for delta in deltas:
            lines += ["", "[[deltas]]"]
            lines += [f"{key} = {toml_value(value)}" for key, value in delta.items()]
        return "\n".join(lines) + "\n"


def parse_delta(text: str) -> DeltaEntry:
    """`ca.delta` or `ca.delta:svp=0.05,mp=0.4,scale=0.2`.

    Raises:
        UsageFault: a setting that is unknown, repeated or no number.
    """
    match = SETTINGS.match(text)
    if Path(text).exists():
        return DeltaEntry(text)
    if match is not None and SETTINGS.match(match["path"]):
        raise UsageFault(f"{text}: settings are separated by commas.", FORM)
    if match is None:
        path, colon, rest = text.rpartition(":")
        if colon and Path(path).exists():
            raise UsageFault(
                f"{text}: {rest!r} is no setting of {path}.",
                FORM,
            )
        return DeltaEntry(text)
    settings: dict[str, float] = {}
    for item in match["settings"].split(","):
        key, _, value = item.partition("=")
        if key not in DELTA_KEYS[1:]:
            raise UsageFault(
                f"{text}: {key!r} is no setting of a delta.{_did_you_mean(key, DELTA_KEYS[1:])}",
                FORM,
            )
        if key in settings:
            raise UsageFault(f"{text}: {key!r} is given twice.")
        try:
            settings[key] = float(value)
        except ValueError:
            raise UsageFault(f"{text}: {key}={value!r} is no number.") from None
    return DeltaEntry(match["path"], **settings)


def wanted_recipe(
    base: FilePath | None,
    deltas: Sequence[FilePath | DeltaEntry] | FilePath | DeltaEntry | None,
    *,
    file: FilePath | None = None,
    include: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str | None = None,
    **settings: Any,
) -> Recipe:
    """Return the merge that is asked for: of a base, deltas and settings, or of a recipe's file.

    Args:
        base: the checkpoint the deltas are added to.
        deltas: what is added, with or without settings of their own as `parse_delta` reads them.
        file: as in `load_recipe`; nothing else may be given beside it.
        include, exclude, settings: the other attributes of `Recipe`, None for their defaults.

    Raises:
        UsageFault: no base, a base beside a file, or a delta's settings that are wrong.
        UnreadableFile: as `load_recipe`.
    """
    entries, include, exclude = (
        several(deltas or ()),
        several(include or ()),
        several(exclude or ()),
    )
    if file is not None:
        if any(
            given not in (None, ())
            for given in (base, entries, include, exclude, *settings.values())
        ):
            raise UsageFault(
                f"--recipe {file} already holds base, deltas and settings.",
                "Give only -o and machine options beside it; edit the recipe to change the merge.",
            )
        return load_recipe(Path(file))
    if base is None:
        raise UsageFault("There is no base.", "Write `lorsmerge merge BASE DELTA...`.")
    return Recipe(
        str(base),
        tuple(item if isinstance(item, DeltaEntry) else parse_delta(str(item)) for item in entries),
        include=include,
        exclude=exclude,
        **settings,
    )


def pruning_method(source: Path, svp: float | None, mp: float | None, method: str | None) -> str:
    """Return the method that prunes one delta: the one given, or what the ratios say.

    Raises:
        UsageFault: ratios out of range, a method that they contradict, or nothing to prune by.
    """
    entry = DeltaEntry(str(source), svp, mp)
    found = Recipe("", (entry,), method).resolved().method or ""
    if METHODS[found].pruner is None:
        raise UsageFault("Nothing says how much to keep.", "Give --svp 0.03 and --mp 0.4, say.")
    return found


def load_recipe(path: Path) -> Recipe:
    """Read a TOML recipe, the one in a model card, or the `lorsmerge.json` that a merge left.

    Raises:
        UnreadableFile: no such file, or not TOML or JSON.
        UsageFault: a key that is unknown, missing or of the wrong type.
    """
    expected: tuple[str, ...] = ()
    contents: tuple[str, ...] = ()
    try:
        text = read_document(path).decode("utf-8")
        if path.suffix == ".json":
            table, expected, contents = _recorded(json_object(text))
        else:
            table = parse_toml(_toml_of(text, path))
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror}.", "Check the path.") from None
    except ValueError as error:
        raise UnreadableFile(f"{path} is no recipe: {error}.", "See examples/recipes/.") from None
    return replace(
        recipe_of(table, str(path)), expected=expected, expected_contents=contents, source=path
    )


def _recorded(
    document: Mapping[str, Any],
) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """Return the recipe in a `lorsmerge.json`, and fingerprint and content of base and deltas."""
    for key, wanted in (("recipe", dict), ("base", dict), ("deltas", list)):
        if not isinstance(document.get(key), wanted):
            raise ValueError(f"`{key}` is missing, or no {wanted.__name__}")
    fingerprints, contents = [], []
    for record in (document["base"], *document["deltas"]):
        found = record.get("fingerprint") if isinstance(record, dict) else None
        if not isinstance(found, str):
            raise ValueError("the fingerprint of its base or of a delta is missing, or no str")
        fingerprints.append(found)
        contents.append(str(record.get("content", "")))
    return document["recipe"], tuple(fingerprints), tuple(contents)


def _toml_of(text: str, path: Path) -> str:
    """A recipe's text; in a model card it is the block that is marked as one.

    Cards written before there was a mark have none: there it is the only block of TOML.
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
    """The fenced blocks of a card as CommonMark has them: the info string and the text of each."""
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
    "scale": (float, int), "include": (list,), "exclude": (list,), "dtype": (str,),
    "path": (str,),
}  # fmt: skip
RECIPE_KEYS = tuple(key for key in KEY_TYPES if key != "path")


def recipe_of(table: Mapping[str, Any], path: str) -> Recipe:
    """Take a recipe from plain values.

    Args:
        table: as `Recipe.to_dict` makes them.
        path: of the file that they were read from, for messages.

    Raises:
        UsageFault: a key that is unknown, missing or of the wrong type.
    """
    faults = _key_faults(table, RECIPE_KEYS, path)
    entries = table.get("deltas", [])
    if isinstance(entries, list):
        for number, entry in enumerate(entries, 1):
            where = f"{path}, delta {number}"
            if not isinstance(entry, dict):
                faults.append(UsageFault(f"{where}: a table is needed.", "Write [[deltas]]."))
                continue
            faults += _key_faults(entry, DELTA_KEYS, where)
            if "path" not in entry:
                faults.append(UsageFault(f"{where}: `path` is missing."))
    faults += [
        UsageFault(f"{path}: `{key}` is missing.") for key in ("base", "deltas") if key not in table
    ]
    raise_all(faults)

    def value(key: str) -> float | None:
        return float(table[key]) if key in table else None

    deltas = tuple(
        DeltaEntry(entry["path"], **{k: float(v) for k, v in entry.items() if k != "path"})
        for entry in entries
    )
    return Recipe(
        base=table["base"],
        deltas=deltas,
        method=table.get("method"),
        svp=value("svp"),
        mp=value("mp"),
        scale=value("scale"),
        include=tuple(table.get("include", ())),
        exclude=tuple(table.get("exclude", ())),
        dtype=table.get("dtype"),
    )


def _key_faults(table: Mapping[str, Any], known: Sequence[str], where: str) -> list[LorsmergeError]:
    faults: list[LorsmergeError] = []
    for key, value in table.items():
        if key not in known:
            faults.append(
                UsageFault(f"{where}: unknown key `{key[:LONGEST]}`.{_did_you_mean(key, known)}")
            )
        elif not isinstance(value, KEY_TYPES[key]) or isinstance(value, bool):
            wanted = " or ".join(kind.__name__ for kind in KEY_TYPES[key])
            faults.append(UsageFault(f"{where}: `{key}` = {_shown(value)} is no {wanted}."))
        elif isinstance(value, int) and not -LARGEST <= value <= LARGEST:
            faults.append(UsageFault(f"{where}: `{key}` = {_shown(value)} is no finite number."))
        elif key in PATTERN_KEYS and not all(isinstance(item, str) for item in list(value)):  # type: ignore[call-overload]
            faults.append(
                UsageFault(
                    f"{where}: `{key}` = {_shown(value)} is no list of patterns.",
                    'Write ["*.fc1.weight"], say.',
                )
            )
    return faults


def _shown(value: object) -> str:
    """The beginning of what stands in a recipe."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python writes no integer of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."


def _method_of(deltas: Sequence[DeltaEntry]) -> str:
    return method_of([r for r in RATIOS if any(getattr(d, r) is not None for d in deltas)])


def unpruned_method_faults(name: str | None) -> list[LorsmergeError]:
    """Return what is wrong with the name of a method that is to prune nothing; None for no name."""
    if name is None:
        return []
    if name not in METHODS:
        return [_unknown_method(name)]
    if not METHODS[name].ratios:
        return []
    return [
        UsageFault(
            f"--method {name} prunes, and how much is not said here.",
            "Prune the deltas before, with `lorsmerge prune`, or give the ratios alone.",
        )
    ]


def _unknown_method(name: str) -> UsageFault:
    return UsageFault(f"Unknown method {name!r}.{_did_you_mean(name, list(METHODS))}")


def _value_faults(recipe: Recipe) -> list[LorsmergeError]:
    faults: list[LorsmergeError] = []
    if not recipe.deltas:
        faults.append(
            UsageFault("There are no deltas to merge.", "Name at least one after the base.")
        )
    if recipe.method is not None and recipe.method not in METHODS:
        faults.append(_unknown_method(recipe.method))
    holders: list[tuple[str, Recipe | DeltaEntry]] = [("", recipe)]
    holders += [(f"{delta.path}: ", delta) for delta in recipe.deltas]
    for where, values in holders:
        for ratio in RATIOS:
            value = getattr(values, ratio)
            if value is not None and not 0 <= value <= 1:
                faults.append(
                    UsageFault(
                        f"{where}{ratio} = {value} is not between 0 and 1.",
                        "It is the share that is kept: 0.03 keeps 3%.",
                    )
                )
        if values.scale is not None and not math.isfinite(values.scale):
            faults.append(UsageFault(f"{where}scale = {values.scale} is no finite number."))
    return faults


def _method_faults(method: str, deltas: Sequence[DeltaEntry]) -> list[LorsmergeError]:
    takes = METHODS[method].ratios
    faults: list[LorsmergeError] = []
    for delta in deltas:
        given = {ratio: getattr(delta, ratio) for ratio in RATIOS}
        named = [ratio for ratio, value in given.items() if value is not None]
        extra = [ratio for ratio in named if ratio not in takes]
        if extra:
            faults.append(
                UsageFault(
                    f"{delta.path}: method {method} takes no --{extra[0]}.",
                    "Drop the ratio or the method: the ratios alone say which method is meant.",
                )
            )
        elif named and not any(given.values()):
            faults.append(
                UsageFault(
                    f"{delta.path}: {' and '.join(named)} 0 would leave nothing of the delta.",
                    "A ratio is the share that is kept; leave both out to merge the delta whole.",
                )
            )
    absent = [ratio for ratio in takes if all(getattr(delta, ratio) is None for delta in deltas)]
    if absent:
        faults.append(
            UsageFault(
                f"Method {method} needs {' and '.join(absent)}, the share it keeps.",
                f"Give {' and '.join(TYPICAL[ratio] for ratio in absent)}, say; the paper chose "
                "from svp 0.01 to 0.05 and mp 0.1 to 0.6.",
            )
        )
    return faults


def save(recipe: Recipe, path: Path, *, force: bool) -> None:
    """Write a recipe as TOML, in place of a file that exists only with `force`.

    Raises:
        OutputFault: the file cannot be written.
    """
    with atomic_file(path, force=force) as partial:
        partial.write_text(recipe.to_toml(), encoding="utf-8")
