"""What a merge reads: a base and deltas, opened and checked from their headers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from lorsmerge_cli.checkpoint.fingerprint import Fingerprint
from lorsmerge_cli.checkpoint.model_files import is_adapter
from lorsmerge_cli.checkpoint.names import (
    idle_patterns,
    nothing_to_prune,
    select_pruned,
    share_warning,
)
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.checkpoint.references import check_hub_ids, is_hub_id, local_path, pinned
from lorsmerge_cli.core.combining import COMBINERS
from lorsmerge_cli.core.low_rank_sparse import dense
from lorsmerge_cli.core.methods import METHODS, method_of
from lorsmerge_cli.deltas.task_vector import (
    StoredTaskVector,
    TaskVector,
    base_fingerprint,
    check_base,
    check_vector,
    notes_on,
    open_file,
    open_task_vector,
)
from lorsmerge_cli.errors import LorsmergeError, UsageFault, named, raise_all
from lorsmerge_cli.inputs import FileIdentity
from lorsmerge_cli.recipe.recipe import Recipe
from lorsmerge_cli.recipe.record import pruning_text

LARGE_SCALE = 10.0


@dataclass(frozen=True)
class MergeInputs:
    """What is merged, open and checked.

    Attributes:
        base: the checkpoint the deltas are added to.
        identity: the base's fingerprint.
        vectors: the deltas, in the recipe's order.
        vector_identities: their fingerprints.
        pruned: names of the tensors that the method prunes.
        warnings: what the user should know before the work.
    """

    base: Checkpoint
    identity: Fingerprint
    vectors: tuple[TaskVector, ...]
    vector_identities: tuple[str, ...]
    pruned: frozenset[str]
    warnings: tuple[str, ...]

    @property
    def files(self) -> list[Path]:
        """Everything that must not be written."""
        return [*self.base.sources, *(file for vector in self.vectors for file in vector.files)]

    @property
    def identities(self) -> dict[Path, FileIdentity]:
        """What tells whether an input changed since it was opened."""
        found = dict(self.base.identities)
        for vector in self.vectors:
            found |= vector.identities
        return found

    def tensors(self, name: str) -> Iterator[tuple[Path, Tensor]]:
        """Yield what is merged into a tensor, each with its path: the base first, then the deltas."""
        yield self.base.path, self.base.read(name)
        for vector in self.vectors:
            yield vector.path, dense(vector.read(name))


def pinned_recipe(recipe: Recipe) -> Recipe:
    """The recipe with the commit of everything that it takes from the Hub."""
    deltas = [
        replace(entry, path=pinned(Path(entry.path)) or entry.path) for entry in recipe.deltas
    ]
    return replace(recipe, base=pinned(Path(recipe.base)) or recipe.base, deltas=tuple(deltas))


def open_inputs(recipe: Recipe, *, allow_other_base: bool = False) -> MergeInputs:
    """Open and check what a resolved recipe merges.

    Raises:
        LorsmergeError: everything that stands in the way, at once.
    """
    faults: list[LorsmergeError] = []
    found = check_inputs(recipe, allow_other_base, faults)
    raise_all(faults)
    return found


def check_inputs(
    recipe: Recipe, allow_other_base: bool, faults: list[LorsmergeError], strip_prefix: str = ""
) -> MergeInputs:
    """The same, with what stands in the way added to `faults` where the files could be opened."""
    base, vectors = _open(recipe, strip_prefix)
    identity = base_fingerprint(base)
    warnings = _check_vectors(base, vectors, identity, allow_other_base, faults)
    pruned = _select(recipe, base, faults)
    if pruned:
        warnings += idle_patterns(base.float_specs, recipe.include, recipe.exclude)
    warnings += _unusual_settings(recipe, vectors)
    identities = tuple(vector.identity() for vector in vectors) if not faults else ()
    warnings += _repeated(vectors, identities)
    warnings += share_warning(base.float_specs, pruned) if pruned else []
    return MergeInputs(base, identity, tuple(vectors), identities, pruned, tuple(warnings))


def _open(recipe: Recipe, strip_prefix: str) -> tuple[Checkpoint, list[TaskVector]]:
    """Open every file of the recipe, and report all that cannot be opened at once."""
    base_path, *paths = [Path(recipe.base), *(Path(entry.path) for entry in recipe.deltas)]
    faults = check_hub_ids([base_path, *paths])
    if faults:  # nothing is downloaded in vain, but what is here is looked at
        paths = [path for path in paths if not is_hub_id(path)]
    base: Checkpoint | None = None
    vectors: list[TaskVector] = []
    try:
        if not (faults and is_hub_id(base_path)):
            base = Checkpoint(base_path)
    except LorsmergeError as error:
        faults.append(error)
    for path in paths:
        try:
            if base is not None:
                vectors.append(open_task_vector(path, base, strip_prefix))
            elif not is_adapter(local_path(path)):
                open_file(path)  # what is wrong with it, too
        except LorsmergeError as error:
            faults.append(error)
    raise_all(faults)
    if base is None:
        raise ValueError("a base that failed to open left no fault")
    return base, vectors


def _check_vectors(
    base: Checkpoint,
    vectors: list[TaskVector],
    identity: Fingerprint,
    allow_other_base: bool,
    faults: list[LorsmergeError],
) -> list[str]:
    warnings = [*base.notes]
    for vector in vectors:
        faults += check_vector(base, vector)
        if isinstance(vector, StoredTaskVector):
            fault = check_base(vector.file, base, identity)
            if fault is not None and not allow_other_base:
                faults.append(fault)
            elif fault is not None:
                warnings.append(fault.what)
        warnings += notes_on(vector, base)
    return warnings


def _select(recipe: Recipe, base: Checkpoint, faults: list[LorsmergeError]) -> frozenset[str]:
    faults += patterns_without_use(recipe)
    if METHODS[recipe.method or method_of(())].pruner is None:
        return frozenset()
    try:
        pruned = select_pruned(base.float_specs, recipe.include, recipe.exclude)
    except UsageFault as error:
        faults.append(error)
        return frozenset()
    if not pruned:
        faults.append(nothing_to_prune(base.path, recipe.exclude))
    return pruned


def patterns_without_use(recipe: Recipe) -> list[LorsmergeError]:
    """Return a fault where a resolved recipe has patterns of what to prune, and prunes nothing."""
    if METHODS[recipe.method or ""].pruner is not None or not (recipe.include or recipe.exclude):
        return []
    return [
        UsageFault(
            f"Method {recipe.method} prunes nothing, so include and exclude have no use.",
            "Give --svp or --mp as well, or leave the patterns out.",
        )
    ]


def _unusual_settings(recipe: Recipe, vectors: list[TaskVector]) -> list[str]:
    """Say which settings do something else than a reader of the command may expect."""
    method = METHODS[recipe.method or method_of(())]
    combiner = COMBINERS[method.combiner]
    before = [
        vector.file.provenance.pruning if isinstance(vector, StoredTaskVector) else {}
        for vector in vectors
    ]
    given = [
        [ratio for ratio in method.ratios if getattr(entry, ratio) is not None]
        for entry in recipe.deltas
    ]
    some_pruned = any(given) or any(before)
    warnings = []
    for vector, pruning, ratios in zip(vectors, before, given, strict=True):
        if ratios and pruning:
            warnings.append(
                f"{vector.path} was pruned before ({pruning_text(pruning)}); this prunes it again."
            )
        elif not ratios and not pruning and not combiner.averages and some_pruned:
            warnings.append(
                f"{vector.path} is merged whole, beside deltas that are pruned; give it ratios too "
                "(DELTA:svp=...,mp=...) if that is not meant."
            )
        if ratios and len(ratios) < len(method.ratios):
            warnings.append(f"{vector.path} is pruned by {ratios[0]} alone: it has no other ratio.")
    if combiner.averages and combiner.linear:
        warnings += _no_mean(
            recipe, [str(v.path) for v, p in zip(vectors, before, strict=True) if p]
        )
    return warnings + [
        f"{entry.path}: a scale of {entry.scale:g} is far off: 1 goes as far as the fine-tune did, "
        "and the paper's is 0.15."
        for entry in recipe.deltas
        if abs(entry.scale or 0.0) > LARGE_SCALE
    ]


def _no_mean(recipe: Recipe, pruned: list[str]) -> list[str]:
    """Say in what the mean of scaled deltas is not the mean of the fine-tunes."""
    warnings = []
    if pruned:
        warnings.append(
            f"Method {recipe.method} averages deltas, and {named(pruned)} "
            f"{'is' if len(pruned) == 1 else 'are'} pruned: the result is not the mean of the "
            "fine-tunes. Give the fine-tunes, or deltas that are not pruned, for that."
        )
    scales = [entry.scale or 0.0 for entry in recipe.deltas]
    if len(set(scales)) > 1:
        shares = ", ".join(f"{scale / len(scales):g}" for scale in scales)
        warnings.append(
            f"Method {recipe.method} divides by the number of deltas: with these scales they count "
            f"{shares}, and {sum(scales) / len(scales):g} in all."
        )
    return warnings


def _repeated(vectors: list[TaskVector], identities: tuple[str, ...]) -> list[str]:
    warnings = []
    for number, identity in enumerate(identities):
        first = identities.index(identity)
        if first < number:
            warnings.append(
                f"{vectors[number].path} is the same delta as {vectors[first].path}: it counts twice."
            )
    return warnings
