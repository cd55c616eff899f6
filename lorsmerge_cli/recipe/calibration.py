"""The audio that a merge lets each of its fine-tunes hear, for methods that weigh deltas by it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorsmerge_cli.checkpoint.modules import EXTENTS
from lorsmerge_cli.checkpoint.references import short_name
from lorsmerge_cli.core.methods import METHODS, find_method, method_faults, method_of
from lorsmerge_cli.errors import LorsmergeError, UsageFault, did_you_mean, raise_all
from lorsmerge_cli.inputs import FilePath, several
from lorsmerge_cli.recipe.recipe import RATIOS, Recipe

Heard = Mapping[str, Sequence[FilePath] | FilePath] | Sequence[FilePath] | FilePath


@dataclass(frozen=True)
class Calibration:
    """Audio for the statistics of a merge.

    Attributes:
        names: of the deltas, in the recipe's order; equal for a delta that is given twice.
        data: name -> data sets.
        half: of the model that there are to be statistics of, as in `stats`.
        hours: about how much of each data set a fine-tune hears; None for all.
    """

    names: tuple[str, ...]
    data: Mapping[str, tuple[Path, ...]]
    half: str = "all"
    hours: float | None = None

    @property
    def sets(self) -> list[Path]:
        """Every data set."""
        return [path for paths in self.data.values() for path in paths]


def wanted_calibration(
    recipe: Recipe, given: Heard | None, *, half: str = "all", hours: float | None = None
) -> Calibration | None:
    """Return the audio of each delta of a recipe; None where none is given.

    Args:
        recipe: of the merge; need not be resolved.
        given: a delta's name -> its data, where an empty name stands for all deltas without data of
            their own; or data sets, each alone or as `NAME=DATA`.
        half: as in `stats`.
        hours: as in `stats`.

    Raises:
        UsageFault: the method needs no audio, there are statistics already, or a delta has no data,
            or data has no delta.

    Example:
        >>> from lorsmerge_cli.recipe.recipe import DeltaEntry
        >>> recipe = Recipe("base", (DeltaEntry("ca.delta"), DeltaEntry("de.delta")), "regmean")
        >>> found = wanted_calibration(recipe, ["ca=clips", "dev.jsonl"])
        >>> {name: sets[0].as_posix() for name, sets in found.data.items()}
        {'ca': 'clips', 'de': 'dev.jsonl'}
    """
    sets = _named(given or ())
    if not sets:
        unused = {"--half": half != "all", "--hours": hours is not None}
        raise_all(
            [
                UsageFault(f"{option} needs --calibrate.", "Give audio with --calibrate.")
                for option, used in unused.items()
                if used
            ]
        )
        return None
    names = delta_names(entry.path for entry in recipe.deltas)
    faults = [*_unfit(recipe), *_misnamed(sets, names)]
    if half not in EXTENTS:
        faults.append(UsageFault(f"--half {half!r} is unknown.", f"Use {', '.join(EXTENTS)}."))
    data = {name: tuple(sets.get(name, sets.get("", ()))) for name in names}
    for name in dict.fromkeys(names):
        if not data[name]:
            what = f"--calibrate has no audio for the delta {name}."
            faults.append(UsageFault(what, f"Give {name}=DATA, or DATA for all deltas."))
    raise_all(faults)
    return Calibration(names, data, half, hours)


def delta_names(paths: Iterable[str]) -> tuple[str, ...]:
    """Return a name for each delta: its file's without the suffix, numbered where two are alike.

    Example:
        >>> delta_names(["runs/ca_asr.delta", "ft/de", "you/deltas@main:fr.delta", "old/ca_asr.delta"])
        ('ca_asr', 'de', 'fr', 'ca_asr-2')
    """
    names: dict[str, str] = {}
    for path in (given := list(paths)):
        stem = name = short_name(path) or "delta"
        number = 1
        while path not in names and name in names.values():
            number += 1
            name = f"{stem}-{number}"
        names.setdefault(path, name)
    return tuple(names[path] for path in given)


def _named(given: Heard) -> dict[str, list[Path]]:
    """Return the data sets of each name; the empty one's are for all other deltas."""
    found: dict[str, list[Path]] = {}
    if isinstance(given, Mapping):
        return {name: [Path(path) for path in several(sets)] for name, sets in given.items()}
    for text in map(str, several(given)):
        name, equals, path = text.partition("=")
        named = bool(equals) and not Path(text).exists()
        found.setdefault(name if named else "", []).append(Path(path if named else text))
    return found


def _unfit(recipe: Recipe) -> Iterator[LorsmergeError]:
    """Yield faults of a merge that has no use for audio."""
    holders = (recipe, *recipe.deltas)
    ratios = [r for r in RATIOS if any(getattr(holder, r) is not None for holder in holders)]
    method = recipe.method or method_of(ratios)
    if not method_faults(method) and not find_method(method).statistics:
        weighing = [name for name, entry in METHODS.items() if entry.statistics]
        other = f", or give --method {' or '.join(weighing)}"
        of_masks = any(entry.for_task for entry in recipe.deltas)  # which take no method
        yield UsageFault(
            f"Method {method} needs no audio, and --calibrate is given.",
            f"Omit --calibrate{'' if of_masks else other}.",
        )
    if recipe.stats:
        yield UsageFault(
            f"Statistics are given, {recipe.stats[0]}, and audio to take them over, --calibrate.",
            "Give --stats for every delta, or --calibrate.",
        )


def _misnamed(sets: Mapping[str, Sequence[Path]], names: Sequence[str]) -> Iterator[LorsmergeError]:
    """Yield faults of data that no delta hears, or that is none."""
    for name, paths in sets.items():
        if name and name not in names:
            what = f"--calibrate {name}={paths[0]} names no delta.{did_you_mean(name, names)}"
            yield UsageFault(what, "Write NAME=DATA with a delta's name, or DATA for all deltas.")
        if not all(str(path) not in ("", ".") for path in paths) or not paths:
            yield UsageFault(f"--calibrate {name}= names no data.", "Write NAME=DATA.")
    if "" in sets and set(names) <= sets.keys():
        what = f"--calibrate {sets[''][0]} is not used: each delta has data of its own."
        yield UsageFault(what, "Omit it.")
