"""Plan a merge: check all that headers and configs tell before a weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lorsmerge_cli.calibration.file import Layout
from lorsmerge_cli.checkpoint.companions import find_companions
from lorsmerge_cli.checkpoint.model_files import CONFIG
from lorsmerge_cli.checkpoint.model_writer import (
    check_companions,
    notes_on_code,
)
from lorsmerge_cli.checkpoint.names import pruned_share
from lorsmerge_cli.checkpoint.reader import BLOCK, Checkpoint
from lorsmerge_cli.checkpoint.references import explain_partial_cache, local_path
from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec, parse_dtype
from lorsmerge_cli.checkpoint.whisper_config import (
    WHISPERS_OWN,
    config_faults,
    lacking_processor,
)
from lorsmerge_cli.core.combining import Combiner
from lorsmerge_cli.core.core_space import pays
from lorsmerge_cli.core.device import resolve_device
from lorsmerge_cli.core.methods import Method, method_of
from lorsmerge_cli.core.parallel import default_threads
from lorsmerge_cli.deltas.task_vector import vector_norm
from lorsmerge_cli.errors import (
    LorsmergeError,
    Mismatch,
    OutputFault,
    UnreadableFile,
    UsageFault,
    raise_all,
)
from lorsmerge_cli.inputs import FileIdentity
from lorsmerge_cli.operations.merge.inputs import MergeInputs, check_inputs
from lorsmerge_cli.outputs import check_not_inside, check_output, leftovers
from lorsmerge_cli.recipe.coefficients import takes_norms
from lorsmerge_cli.recipe.recipe import Recipe
from lorsmerge_cli.usage import check_weights_path

if TYPE_CHECKING:  # it loads transformers, which merges without audio do not need
    from lorsmerge_cli.operations.stats import StatsPlan

PRUNING_COPIES = 4  # of a matrix in float32 that pruning and a running sum hold at a time
HEAP_SLACK = 2  # the allocator keeps up to as much again of what was freed
FACTOR_COPIES = 8  # of all factors in float32, beside bases of them
THREAD_OVERHEAD = 32 << 20  # bytes: buffers of BLAS
ANEW = "To merge something else, write a TOML recipe: `merge --save-recipe` makes one."


@dataclass(frozen=True)
class Unit:
    """What one thread does at a time: a pruned matrix, or a block of a tensor's elements.

    Attributes:
        name: of the tensor.
        start, stop: elements in row-major order.
        whole: whether the tensor is needed in one piece and in its shape.
        nbytes: in the base.
    """

    name: str
    start: int
    stop: int
    whole: bool
    nbytes: int


@dataclass(frozen=True)
class MergePlan(MergeInputs):
    """A checked merge, ready to be carried out.

    Attributes:
        recipe: with every default written out.
        config_dir: the folder whose config and tokenizer an output folder gets.
        copied: what tells whether a file of it changed since it was found.
        output: file or folder.
        as_folder: whether `output` is a model folder.
        output_specs: every tensor of the output.
        dtype: of most of the output.
        device, threads, max_shard_size, allow_other_base, force, save_recipe: as in `merge`.
        lacking: faults for tokenizer and feature extractor where a Whisper's folder will have none.
        calibration: statistics of each delta's fine-tune that are to be made first; empty where there
            are files of them, or none are needed.
        aim: the step norm that its lambdas were chosen for; None where they are as given.
    """

    recipe: Recipe
    config_dir: Path | None
    copied: Mapping[Path, FileIdentity]
    output: Path
    as_folder: bool
    output_specs: dict[str, TensorSpec]
    dtype: torch.dtype
    device: torch.device
    threads: int
    max_shard_size: int
    allow_other_base: bool
    force: bool
    save_recipe: Path | None
    lacking: tuple[LorsmergeError, ...]
    calibration: tuple[StatsPlan, ...] = ()
    aim: float | None = None

    @property
    def method(self) -> str:
        """The method as `find_method` reads it."""
        return self.recipe.method or method_of(())

    @property
    def chosen_method(self) -> Method:
        """The method itself."""
        return self.recipe.chosen_method

    @property
    def combiner(self) -> Combiner:
        """The method's combiner."""
        return self.chosen_method.combined

    @property
    def total_scale(self) -> float:
        """Sum of the coefficients, or their mean where the combiner averages."""
        total = sum(entry.scale or 0.0 for entry in self.recipe.deltas)
        return total / len(self.recipe.deltas) if self.combiner.averages else total

    @property
    def largest_scale(self) -> float:
        """The largest magnitude of a coefficient."""
        return max(abs(entry.scale or 0.0) for entry in self.recipe.deltas)

    @property
    def output_size(self) -> int:
        """Bytes of the output's weights."""
        return sum(spec.nbytes for spec in self.output_specs.values())

    @property
    def pruned_share(self) -> float:
        """Share of the parameters that is pruned."""
        return pruned_share(self.base.float_specs, self.pruned)

    @property
    def holds_all(self) -> bool:
        """Whether all deltas of a tensor are held at once."""
        return self.chosen_method.needs_all or self.factors.agreement is not None

    @property
    def takes_factors(self) -> bool:
        """Whether deltas of low rank stay factors."""
        return self.chosen_method.takes_factors and self.factors.agreement is None

    @cached_property
    def weighed(self) -> frozenset[str]:
        """Names of the tensors that there are statistics of."""
        layouts = self.layouts
        return layouts[0].names(self.chosen_method.statistics) if layouts else frozenset()

    @property
    def layouts(self) -> list[Layout]:
        """What the statistics of each fine-tune consist of, be they there or still to be made."""
        return [found.layout for found in self.statistics or self.calibration]

    @property
    def memory(self) -> int:
        """Upper bound on working memory in bytes, excluding PyTorch and memory-mapped inputs."""
        largest = max(map(self._held, filter(self.is_whole, self.base.specs)), default=0)
        held = max(4 * self._copies * BLOCK, largest)
        widths = [width for layout in self.layouts for width in layout.widths.values()]
        held += self.combiner.squares * 8 * max(widths, default=0) ** 2
        return self.threads * (HEAP_SLACK * held + THREAD_OVERHEAD)

    @property
    def _copies(self) -> int:
        """Tensors in float32 that are held at a time where all deltas are dense."""
        deltas = len(self.vectors) if self.holds_all else 0
        return PRUNING_COPIES + self.chosen_method.copies + deltas

    def _held(self, name: str) -> int:
        """Return the bytes that the merge of a whole tensor holds."""
        shape, numel = self.base.specs[name].shape, self.base.specs[name].numel
        ranks = self._ranks.get(name)
        if ranks is None or not pays(ranks, shape):
            return 4 * self._copies * numel
        rank = sum(ranks)
        return 4 * (
            PRUNING_COPIES * numel + FACTOR_COPIES * rank * sum(shape) + self._copies * rank**2
        )

    @cached_property
    def _ranks(self) -> dict[str, list[int]]:
        """Ranks of the deltas of each tensor that is combined in the space of their factors."""
        if not (self.takes_factors and self.combiner.turns):
            return {}
        layouts = [vector.layouts for vector in self.vectors]
        found = {
            name: [of_vector[name].low_rank for of_vector in layouts]
            for name in self.base.float_specs
            if name not in self.pruned
        }
        return {
            name: [rank for rank in ranks if rank is not None]
            for name, ranks in found.items()
            if None not in ranks
        }

    def is_whole(self, name: str) -> bool:
        """Return whether a tensor is merged in one piece, not in blocks."""
        if not self.base.specs[name].is_float:
            return False
        if self.holds_all or name in self.pruned or name in self.weighed:
            return True
        return any(vector.is_pruned(name) for vector in self.vectors)

    def units(self) -> Iterator[Unit]:
        """Yield the work in the base's order."""
        for name, spec in self.base.specs.items():
            if self.is_whole(name):
                yield Unit(name, 0, spec.numel, True, spec.nbytes)
                continue
            for start in range(0, spec.numel, BLOCK):
                stop = min(start + BLOCK, spec.numel)
                yield Unit(name, start, stop, False, (stop - start) * spec.dtype.itemsize)


def plan_merge(
    recipe: Recipe,
    output: Path | None = None,
    *,
    config_dir: Path | None = None,
    save_recipe: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    max_shard_size: int = 5 * 10**9,
    force: bool = False,
    allow_other_base: bool = False,
    strip_prefix: str = "",
    calibrated: bool = False,
) -> MergePlan:
    """Check everything that headers, configs and the file system tell, and plan the merge.

    The settings and their defaults are those of `merge`. With `calibrated`, the statistics that the
    method needs are planned later, by `plan_calibration`.

    Raises:
        LorsmergeError: all faults, at once.
    """
    recipe = recipe.resolved(calibrated=calibrated)
    target_device = resolve_device(device)
    faults: list[LorsmergeError] = []
    found = check_inputs(recipe, allow_other_base, faults, strip_prefix)
    base = found.base
    specs = output_specs(base, recipe.dtype)
    if output is None:
        output = Path("merged" if base.folder or config_dir else "merged.safetensors")
    as_folder = output.suffix.lower() != ".safetensors"
    given = None if calibrated and not as_folder else config_dir  # which the fine-tunes need
    folder = _config_dir(output, as_folder, base, given, faults)
    inputs = found.files + [path for path in (recipe.source, folder) if path is not None]
    companions = find_companions(folder) if folder else None
    size = sum(spec.nbytes for spec in specs.values()) + (companions.size if companions else 0)
    faults += check_output(output, inputs=inputs, size=size, force=force, folder=as_folder)
    if save_recipe is not None:
        faults += check_output(save_recipe, inputs=[*inputs, output], size=0, force=force)
        faults += check_not_inside(save_recipe, output) if as_folder else []
    raise_all(faults)
    raise_all(_check_expected(recipe, found))
    if takes_norms(recipe.coef):
        recipe = recipe.weighed(list(map(vector_norm, found.vectors)))
    copied = companions.files if companions else {}
    lacking: list[LorsmergeError] = []
    if folder and base.specs.keys() >= WHISPERS_OWN:
        given = config_dir or base.path
        lacking = explain_partial_cache(given, lacking_processor(copied, given, folder))
    warnings = [*found.warnings, *(notes_on_code(folder) if folder else ()), *leftovers(output)]
    for fault in lacking:
        warnings.append(f"{fault.what[:-1]}, and {output} will have none. {fault.remedy}")
    return MergePlan(
        **vars(found) | {"warnings": tuple(warnings)},
        recipe=recipe, config_dir=folder,
        copied={path: FileIdentity.of(path) for path in copied.values()},
        output=output, as_folder=as_folder, output_specs=specs,
        dtype=parse_dtype(recipe.dtype) if recipe.dtype else base.dtype,
        device=target_device, threads=threads or default_threads(),
        max_shard_size=max_shard_size, allow_other_base=allow_other_base, force=force,
        save_recipe=save_recipe, lacking=tuple(lacking),
    )  # fmt: skip


def _config_dir(
    output: Path,
    as_folder: bool,
    base: Checkpoint,
    given: Path | None,
    faults: list[LorsmergeError],
) -> Path | None:
    """Return the folder with config and tokenizer; None where one file is written."""
    if wrong := check_weights_path(output):
        faults += wrong
        return None
    if not as_folder:
        if given is not None:
            what = f"--config {given} has no use where one file is written."
            faults.append(UsageFault(what, "Omit it, or write -o NAME/ for a model folder."))
        return None
    folder = base.folder
    if given is not None:
        try:
            folder = local_path(given, "companions")
        except LorsmergeError as error:
            faults.append(error)
            return None
        if not (folder / CONFIG).is_file():
            what = f"--config {given} has no {CONFIG}."
            faults.append(UnreadableFile(what, "Give the base's model folder."))
        faults += config_faults(base, folder)
    if folder is None:
        faults.append(
            OutputFault(
                f"{output} is to be a model folder, and the base {base.path} is a bare file without "
                "config and tokenizer.",
                "Take both from its model folder or Hub id with --config (for OpenAI's small.pt: "
                "--config openai/whisper-small), or write -o NAME.safetensors.",
            )
        )
        return None
    faults += check_companions(folder)
    return folder


def output_specs(base: Checkpoint, dtype: str | None) -> dict[str, TensorSpec]:
    """Return the base's tensors, the float ones in `dtype` unless it is None."""
    if dtype is None:
        return dict(base.specs)
    target = parse_dtype(dtype)
    return {
        name: TensorSpec(spec.shape, target) if spec.is_float else spec
        for name, spec in base.specs.items()
    }


def _check_expected(recipe: Recipe, inputs: MergeInputs) -> list[LorsmergeError]:
    """Return faults for inputs that are not those of the recipe's `lorsmerge.json`."""
    if not recipe.expected:
        return []
    files = inputs.statistics
    found = (inputs.identity.digest, *inputs.vector_identities, *(f.identity for f in files))
    paths = [
        inputs.base.path,
        *(vector.path for vector in inputs.vectors),
        *(f.path for f in files),
    ]
    if len(paths) != len(recipe.expected):
        count = len(recipe.expected) - 1
        what = f"{recipe.source} lists {len(paths) - 1} deltas and the fingerprints of {count}."
        return [UsageFault(what, ANEW)]
    return [
        other_input(path, digest, wanted)
        for path, digest, wanted in zip(paths, found, recipe.expected, strict=True)
        if digest != wanted
    ]


def other_input(path: Path, found: str, recorded: str) -> Mismatch:
    """Return the error for an input that differs from the one a `lorsmerge.json` recorded."""
    return Mismatch(
        f"{path} is not the file that the recipe was made with (fingerprint {found[:12]}, recorded "
        f"{recorded[:12]}).",
        f"Restore it. {ANEW}",
    )
