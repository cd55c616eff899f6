"""Open the base and the deltas of a merge, and check them by their headers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from lorsmerge_cli.calibration.file import StatisticsFile
from lorsmerge_cli.calibration.matching import check_fit, matched
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
from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec
from lorsmerge_cli.core.low_rank_sparse import dense
from lorsmerge_cli.core.merging import is_finite
from lorsmerge_cli.core.methods import Method, method_of
from lorsmerge_cli.core.pruning.budget import Budget
from lorsmerge_cli.core.pruning.localize import READS
from lorsmerge_cli.deltas.file import DeltaFile
from lorsmerge_cli.deltas.task_vector import (
    StoredVector,
    TaskVector,
    base_fingerprint,
    check_base,
    check_vector,
    open_file,
    open_task_vector,
    precision_warnings,
)
from lorsmerge_cli.errors import LorsmergeError, UsageFault, named, non_finite, raise_all
from lorsmerge_cli.inputs import FileIdentity
from lorsmerge_cli.operations.merge.faults import faulty_input
from lorsmerge_cli.recipe.coefficients import (
    PARTS,
    TensorFactors,
    between_deltas,
    check_matches,
    tensor_factors,
)
from lorsmerge_cli.recipe.recipe import LARGEST_SCALE, RATIOS, Recipe
from lorsmerge_cli.recipe.record import pruning_text

LARGE_SCALE = 10.0
PART_RATIOS = dict(zip(PARTS, RATIOS, strict=True))  # the ratio that leaves each part of a delta


@dataclass(frozen=True)
class MergeInputs:
    """What is merged, open and checked.

    Attributes:
        base: the checkpoint the deltas are added to.
        identity: the base's fingerprint.
        vectors: the deltas, in the recipe's order.
        vector_identities: their fingerprints.
        pruned: names of the tensors that the method prunes.
        factors: of the deltas' lambdas, by tensor.
        statistics: of each delta's fine-tune, in the recipe's order; empty where the method needs
            none.
        warnings: what the user should know before the work.
        allotted: what `allot` found, by the pruner with its parameters.
    """

    base: Checkpoint
    identity: Fingerprint
    vectors: tuple[TaskVector, ...]
    vector_identities: tuple[str, ...]
    pruned: frozenset[str]
    factors: TensorFactors
    statistics: tuple[StatisticsFile, ...]
    warnings: tuple[str, ...]
    allotted: dict[str, Mapping[tuple[int, str], Budget]]

    @property
    def files(self) -> list[Path]:
        """All files that are read, and must not be written."""
        return [
            *self.base.sources,
            *(file for vector in self.vectors for file in vector.files),
            *(statistics.local for statistics in self.statistics),
        ]

    @property
    def identities(self) -> dict[Path, FileIdentity]:
        """What tells whether an input changed since it was opened."""
        found = dict(self.base.identities)
        for vector in self.vectors:
            found |= vector.identities
        for statistics in self.statistics:
            found |= statistics.identities
        return found

    def tensors(self, name: str) -> Iterator[tuple[Path, Tensor]]:
        """Yield path and values of a tensor in the base and then in each delta."""
        yield self.base.path, self.base.read(name)
        for vector in self.vectors:
            yield vector.path, dense(vector.read(name))

    def allot(
        self, method: Method, threads: int, progress: Callable[[int], None] = lambda done: None
    ) -> Mapping[tuple[int, str], Budget]:
        """Return what `Method.allot` does, counted once however many merges need it.

        Args:
            method: whose pruner decides what is kept.
            threads: tensors in flight.
            progress: called with bytes of the base just done, `allotting(method)` in all.

        Raises:
            NonFinite: a NaN or an infinity in a tensor that is pruned.
        """
        specs, key = self.base.specs, method.pruner_spec
        if key in self.allotted:
            progress(self.allotting(method))
        else:
            self.allotted[key] = method.allot(
                self.pruned, self._finite_deltas, len(self.vectors), threads,
                lambda name: progress(specs[name].nbytes),
            )  # fmt: skip
        return self.allotted[key]

    def allotting(self, method: Method) -> int:
        """Return the bytes of the base that `allot` tells of."""
        if method.overall is None:
            return 0
        return READS * sum(self.base.specs[name].nbytes for name in self.pruned)

    def _finite_deltas(self, name: str) -> Iterator[Tensor]:
        for vector in self.vectors:
            delta = dense(vector.read(name))
            if not is_finite(delta):
                raise faulty_input(name, self.tensors(name)) or non_finite(vector.path, name)
            yield delta
            del delta  # before the next one is made


def pinned_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe with the commit of each Hub id."""
    deltas = [
        replace(entry, path=pinned(Path(entry.path)) or entry.path) for entry in recipe.deltas
    ]
    stats = tuple(pinned(Path(path)) or path for path in recipe.stats)
    base = pinned(Path(recipe.base)) or recipe.base
    return replace(recipe, base=base, deltas=tuple(deltas), stats=stats)


def open_inputs(recipe: Recipe, *, allow_other_base: bool = False) -> MergeInputs:
    """Open and check what a resolved recipe merges.

    Raises:
        LorsmergeError: all faults, at once.
    """
    faults: list[LorsmergeError] = []
    found = check_inputs(recipe, allow_other_base, faults)
    raise_all(faults)
    return found


def check_inputs(
    recipe: Recipe, allow_other_base: bool, faults: list[LorsmergeError], strip_prefix: str = ""
) -> MergeInputs:
    """Open and check like `open_inputs`, but append faults of files that open to `faults`."""
    base, vectors, files = _open(recipe, strip_prefix)
    identity = base_fingerprint(base)
    warnings = [*base.notes]
    for vector in vectors:
        faults += check_vector(base, vector)
        if isinstance(vector, StoredVector):
            fault = check_base(vector, base, identity)
            if fault is not None and not allow_other_base:
                faults.append(fault)
            elif fault is not None:
                warnings.append(fault.what)
        warnings += precision_warnings(vector, base)
    statistics: tuple[StatisticsFile, ...] = ()
    if files and not faults:  # of which some say that names or bases differ
        statistics = matched(files, base, vectors, faults)
        kind = recipe.chosen_method.statistics
        faults += check_fit(files, kind, base)
    faults += _part_faults(recipe, vectors)
    pruned = select_tensors(recipe, base.float_specs, base.path, faults)
    factors = select_factors(recipe, base.float_specs, base.path, faults, warnings)
    if pruned:
        warnings += idle_patterns(base.float_specs, recipe.include, recipe.exclude)
    warnings += _unusual_settings(recipe, vectors)
    identities = tuple(vector.identity() for vector in vectors) if not faults else ()
    warnings += _repeated(vectors, identities)
    warnings += share_warning(base.float_specs, pruned) if pruned else []
    return MergeInputs(
        base, identity, tuple(vectors), identities, pruned, factors, statistics, tuple(warnings), {}
    )


def _open(
    recipe: Recipe, strip_prefix: str
) -> tuple[Checkpoint, list[TaskVector], list[StatisticsFile]]:
    """Open every file of the recipe; raise at once for all that cannot be opened."""
    base_path, entries = Path(recipe.base), list(recipe.deltas)
    stats = list(map(Path, recipe.stats))
    faults = check_hub_ids([base_path, *(Path(entry.path) for entry in entries), *stats])
    if faults:  # download nothing in vain, but check the local files
        entries = [entry for entry in entries if not is_hub_id(Path(entry.path))]
        stats = [path for path in stats if not is_hub_id(path)]
    base: Checkpoint | None = None
    vectors: list[TaskVector] = []
    try:
        if not (faults and is_hub_id(base_path)):
            base = Checkpoint(base_path)
    except LorsmergeError as error:
        faults.append(error)
    for entry in entries:
        path = Path(entry.path)
        try:
            if base is not None:
                vectors.append(open_task_vector(path, base, strip_prefix, entry.for_task))
            elif not is_adapter(local_path(path)):
                open_file(path)  # for its faults
        except LorsmergeError as error:
            faults.append(error)
    files = []
    for path in stats:
        try:
            files.append(StatisticsFile(path))
        except LorsmergeError as error:
            faults.append(error)
    raise_all(faults)
    if base is None:
        raise ValueError("a base that failed to open left no fault")
    return base, vectors, files


def select_tensors(
    recipe: Recipe, floats: Mapping[str, TensorSpec], base: object, faults: list[LorsmergeError]
) -> frozenset[str]:
    """Return the names of the tensors that a resolved recipe prunes.

    Args:
        recipe: with its method and patterns.
        floats: the float tensors of the base.
        base: what messages call it.
        faults: gets what is wrong with the patterns.
    """
    if recipe.chosen_method.pruner is None:
        if recipe.include or recipe.exclude:
            what = f"Method {recipe.method} prunes nothing, so include and exclude have no use."
            ratios_may_come = recipe.method == method_of(())
            remedy = "Omit them, or give --svp or --mp." if ratios_may_come else "Omit them."
            faults.append(UsageFault(what, remedy))
        return frozenset()
    try:
        pruned = select_pruned(floats, recipe.include, recipe.exclude)
    except UsageFault as error:
        faults.append(error)
        return frozenset()
    if not pruned:
        faults.append(nothing_to_prune(base, recipe.exclude))
    return pruned


def select_factors(
    recipe: Recipe,
    floats: Mapping[str, TensorSpec],
    base: object,
    faults: list[LorsmergeError],
    warnings: list[str],
) -> TensorFactors:
    """Return the factors that a resolved recipe's rules give each tensor.

    Args:
        recipe: with its rules.
        floats: the float tensors of the base.
        base: what messages call it.
        faults: gets one for each rule that no tensor is subject to.
        warnings: gets one for each rule without effect.
    """
    names = list(floats)
    faults += check_matches(recipe.coef, names, base, warnings)
    for entry in recipe.deltas:
        for kind, rules in entry.own_rules.by_kind.items():
            noted: list[str] = []
            found = check_matches(rules, names, base, noted)
            where = f"{entry.path}, {kind}: "
            faults += [UsageFault(f"{where}{fault.what}", fault.remedy) for fault in found]
            warnings += [f"{where}{note}" for note in noted]
    factors = tensor_factors(recipe.coef, names, recipe.own_rules)
    scale = max((abs(entry.scale or 0.0) for entry in recipe.deltas), default=0.0)
    for name, factor in _largest(factors, names, len(recipe.deltas)):
        if not scale * abs(factor) < LARGEST_SCALE:
            what = f"--coef makes lambda {scale * factor:g} in {name!r}, which is too large."
            faults.append(UsageFault(what, "Give smaller factors."))
            break
    return factors


def _largest(factors: TensorFactors, names: list[str], deltas: int) -> Iterator[tuple[str, float]]:
    """Yield each tensor that rules have a factor for, with the one of largest magnitude."""
    yield from factors.factors.items()
    for name in names if factors.own else ():
        found = [factors.of_delta(name, number) for number in range(deltas)]
        found += [f for number in range(deltas) for f in factors.of_parts(name, number) or ()]
        yield name, max(found, key=abs)


def _part_faults(recipe: Recipe, vectors: list[TaskVector]) -> Iterator[LorsmergeError]:
    """Yield faults of rules for parts that a delta has not."""
    method = recipe.chosen_method
    for entry, vector in zip(recipe.deltas, vectors, strict=True):
        if method.prunes(entry.svp, entry.mp):
            found = {part for part, ratio in PART_RATIOS.items() if getattr(entry, ratio)}
            if not method.ratios:
                found = {*PARTS}
            if method.centred:  # the mean is in neither part
                found = set()
        elif isinstance(vector, DeltaFile):
            pruning = vector.provenance.pruning
            found = {part for part, ratio in PART_RATIOS.items() if pruning.get(ratio)}
        else:  # an adapter's factors
            found = {PARTS[0]} if any(map(vector.is_pruned, vector.specs)) else set()
        for part in PARTS:
            if getattr(entry, part) and part not in found:
                yield UsageFault(
                    f"{entry.path} has no {part.replace('_', '-')} part, and its recipe has rules "
                    "for one.",
                    f"Give it a ratio ({PART_RATIOS[part]}), or remove `{part}`.",
                )


def _unusual_settings(recipe: Recipe, vectors: list[TaskVector]) -> Iterator[str]:
    """Yield warnings of settings whose effect a user may not expect."""
    method = recipe.chosen_method
    combiner = method.combined
    before = [
        vector.provenance.pruning if isinstance(vector, DeltaFile) else {} for vector in vectors
    ]
    given = [
        [ratio for ratio in method.ratios if getattr(entry, ratio) is not None]
        for entry in recipe.deltas
    ]
    some_pruned = any(given) or any(before)
    prunes = [method.prunes(entry.svp, entry.mp) for entry in recipe.deltas]
    for vector, pruning, ratios, pruned in zip(vectors, before, given, prunes, strict=True):
        if pruned and pruning:
            yield f"{vector.path} was pruned before ({pruning_text(pruning)}); this prunes it again."
        elif not pruned and not pruning and not combiner.averages and some_pruned:
            yield (
                f"{vector.path} is merged whole, beside deltas that are pruned; prune it too, by "
                "`lorsmerge prune` or DELTA:svp=...,mp=..., if that is not meant."
            )
        if ratios and len(ratios) < len(method.ratios):
            yield f"{vector.path} is pruned by {ratios[0]} alone: it has no other ratio."
    if combiner.averages and combiner.linear:
        earlier = [str(v.path) for v, pruning in zip(vectors, before, strict=True) if pruning]
        yield from _no_mean(recipe, earlier)
    comparing = between_deltas(recipe.coef)
    if len(vectors) == 1:
        yield from (f"--coef {rule} has no effect on a single delta." for rule in comparing)
    elif method.combiner in comparing:
        yield f"The factor of --coef {method.combiner} is in the method itself, too: it counts twice."
    for entry in recipe.deltas:
        if abs(entry.scale or 0.0) > LARGE_SCALE:
            yield (
                f"{entry.path}: a scale of {entry.scale:g} is far off: 1 goes as far as the fine-tune "
                "did, and the paper's is 0.15."
            )


def _no_mean(recipe: Recipe, pruned: list[str]) -> Iterator[str]:
    """Yield warnings where the mean of the deltas is not the mean of the fine-tunes."""
    if pruned:
        yield (
            f"Method {recipe.method} averages deltas, and {named(pruned)} "
            f"{'is' if len(pruned) == 1 else 'are'} pruned: the result is not the mean of the "
            "fine-tunes. Give the fine-tunes, or deltas that are not pruned, for that."
        )
    scales = [entry.scale or 0.0 for entry in recipe.deltas]
    if len(set(scales)) > 1:
        shares = ", ".join(f"{scale / len(scales):g}" for scale in scales)
        yield (
            f"Method {recipe.method} divides by the number of deltas: with these scales they count "
            f"{shares}, and {sum(scales) / len(scales):g} in all."
        )


def _repeated(vectors: list[TaskVector], identities: tuple[str, ...]) -> Iterator[str]:
    for number, identity in enumerate(identities):
        first = vectors[identities.index(identity)]
        if first is not vectors[number]:
            yield f"{vectors[number].path} is the same delta as {first.path}: it counts twice."
