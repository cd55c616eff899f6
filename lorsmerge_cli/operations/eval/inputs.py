"""Open the inputs of an evaluation: models, with deltas applied or not, and test sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorsmerge_cli.core.methods import find_method, method_of
from lorsmerge_cli.data.dataset import (
    check_complete,
    drop_warnings,
    empty_groups,
    load_data,
)
from lorsmerge_cli.data.hours import Given, parse_hours
from lorsmerge_cli.data.readers import manifest_splits
from lorsmerge_cli.deltas.task_vector import vector_norm
from lorsmerge_cli.errors import LorsmergeError, UsageFault, raise_all
from lorsmerge_cli.recipe.coefficients import (
    check_matches,
    check_rules,
    norm_factors,
    takes_norms,
    tensor_factors,
)
from lorsmerge_cli.recipe.recipe import unpruned_method_faults
from lorsmerge_cli.results.document import TestSet
from lorsmerge_cli.results.suite import Suite
from lorsmerge_cli.speech.source import ModelSource, find_models
from lorsmerge_cli.usage import Named, check_applied, named_data, named_models


def open_models(
    models: Named,
    config_dir: Path | None = None,
    deltas: Sequence[Path] = (),
    method: str | None = None,
    scale: float | None = None,
    coef: Sequence[str] = (),
) -> list[ModelSource]:
    """Open and check models, or one with deltas applied to it.

    Args:
        models: as in `named_paths`.
        config_dir: as in `find_model`.
        deltas: to apply to the one model.
        method: how they are added; task arithmetic by default.
        scale: of each delta, the method's by default.
        coef: rules of factors that the scale is multiplied by.

    Raises:
        LorsmergeError: every fault found.
    """
    named = named_models(models, deltas, method, scale, coef)
    raise_all(
        check_applied(named, deltas, {"--scale": scale, "--method": method, "--coef": coef or None})
        + unpruned_method_faults(method)
        + check_rules(coef)
    )
    found = find_method(method or method_of(()))
    scale = found.scale if scale is None else scale
    sources = find_models(
        named, config_dir=config_dir, deltas=deltas, scale=scale, method=found.spec
    )
    return [_with_rules(source, coef) for source in sources] if coef else sources


def _with_rules(source: ModelSource, coef: Sequence[str]) -> ModelSource:
    """Return a model whose deltas are applied by rules of coefficients, as `merge` does it."""
    names = list(source.checkpoint.float_specs)
    raise_all(check_matches(coef, names, source.checkpoint.path, []))
    found, others, applied = tensor_factors(coef, names), list(coef), source.applied
    if takes_norms(coef):
        factors, others = norm_factors(coef, [vector_norm(vector) for vector, _ in applied])
        applied = tuple(
            (vector, scale * factor)
            for (vector, scale), factor in zip(applied, factors, strict=True)
        )
    return replace(
        source, applied=applied, coef=tuple(others), factors=found.factors,
        agreement=found.agreement,
    )  # fmt: skip


def planned_sets(
    data: Named, suite: Suite | None, reading: Mapping[str, Any]
) -> list[tuple[str, Path, dict[str, Any]]]:
    """Return name and path of every test set, and the arguments of `read_test_set` for it.

    Args:
        data: as in `named_data`.
        suite: whose sets come after those.
        reading: the arguments, where a suite's set gives no others.

    Raises:
        UsageFault: there is no set, or two have one name.
    """
    planned = [(name, path, dict(reading)) for name, path in named_data(data)]
    of_suite = suite.sets if suite else ()
    planned += [(own.name, own.path, {**reading, **own.reading}) for own in of_suite]
    if not planned:
        raise UsageFault("There is nothing to score.", "Give data or a suite.")
    names = [name for name, _, _ in planned]
    faults: list[LorsmergeError] = [
        UsageFault(
            f"--data {name} has the name of a set of {suite.path}.", "Name it with NAME=PATH."
        )
        for name in dict.fromkeys(names)
        if suite and names.count(name) > 1 and name in suite.record.sets
    ]
    raise_all(faults)
    return planned


def read_test_set(
    name: str,
    path: Path,
    window: float,
    *,
    allow_missing: bool = False,
    shard: tuple[int, int] = (1, 1),
    progress: Callable[[int, int], None] = lambda done, total: None,
    **reading: Any,
) -> tuple[TestSet, list[str], list[str]]:
    """Read a test set, and decode its audio to check that it is whole.

    Args:
        name: for tables.
        path: a manifest, a data folder or a reference to the Hub.
        window: seconds that the models take.
        allow_missing: use the other rows if audio is damaged or much of it is missing.
        shard: i and n, to take one utterance of n, from the i-th on.
        progress: called with the utterances just read and those in all.
        reading: further arguments of `load_data`.

    Returns:
        The test set, warnings, and a line for each row that is dropped.

    Raises:
        LorsmergeError: as `load_data` and `check_complete`.
    """
    loaded = load_data(
        [path], **reading, max_seconds=window, empty_text=True, decoded=True, progress=progress
    )
    if not allow_missing:
        check_complete(loaded, path)
    # a score that is not of all rows comes with a warning
    warnings = [f"{path}: {warning}" for warning in drop_warnings(loaded, 0.0)]
    warnings += [
        f"{path}: the {empty} references have no words, so there is no score; words that are written "
        "there are counted."
        for empty in empty_groups(loaded.utterances)
    ]
    made = sum(row.label is not None for row in loaded.utterances)
    if made:
        warnings.append(
            f"{path}: {made} of {len(loaded.utterances)} references were made by models (`transcribe "
            "--teacher`): a score tells how close another comes to those."
        )
    split = reading["split"] if manifest_splits(path, reading["format"]) else None
    first, step = shard
    rows, count = loaded.utterances[first - 1 :: step], len(loaded.utterances)
    hub = loaded.hub[0] if loaded.hub else None
    found = TestSet(name, rows, loaded.drops, path, split, count, hub, loaded.selected)
    return found, warnings, loaded.drop_notes


def check_languages(hours: Given, tests: Sequence[TestSet]) -> None:
    """Check that each language with hours of its own is in a test set; of shards that is not known.

    Raises:
        UsageFault: one is in none.
    """
    asked = parse_hours(hours)
    if asked and all(len(each.utterances) == each.of for each in tests):
        there = [row.language for each in tests for row in each.utterances]
        asked.check_languages(there, ", ".join(str(each.path) for each in tests))
