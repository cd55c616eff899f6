"""Open a model to train or to score: a folder, a bare file, or a base with deltas applied."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from torch import Tensor

from lorsmerge_cli.checkpoint.model_files import processor_folder
from lorsmerge_cli.checkpoint.names import select_pruned
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.checkpoint.references import check_hub_ids, is_hub_id, local_path
from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec
from lorsmerge_cli.checkpoint.whisper_config import check_model_folder, config_faults, other_sizes
from lorsmerge_cli.core.device import resolve_device
from lorsmerge_cli.core.low_rank_sparse import dense
from lorsmerge_cli.core.merging import Term, is_finite, merge_tensor
from lorsmerge_cli.core.methods import Method, find_method, method_of
from lorsmerge_cli.core.parallel import default_threads
from lorsmerge_cli.core.pruning.budget import Budget, budget
from lorsmerge_cli.deltas.file import DeltaFile
from lorsmerge_cli.deltas.task_vector import (
    FinetunedTaskVector,
    TaskVector,
    base_fingerprint,
    check_base,
    check_vector,
    open_task_vector,
)
from lorsmerge_cli.errors import LorsmergeError, non_finite, raise_all
from lorsmerge_cli.inputs import FileIdentity
from lorsmerge_cli.speech.loading import ModelParts, load_config, load_parts
from lorsmerge_cli.speech.model import SpeechModel, build_model
from lorsmerge_cli.speech.settings import AUTO_DTYPE, check_compute_dtype, full_dtype

if TYPE_CHECKING:
    from lorsmerge_cli.core.coefficients import Agreement


@dataclass(frozen=True)
class ModelSource:
    """A model whose files and headers were checked.

    Attributes:
        name: for tables.
        checkpoint: its weights.
        folder: its config.
        processor: the folder of its tokenizer and feature extractor.
        parts: config and processor.
        applied: deltas to add, each with its scale.
        method: as `find_method` reads it, how they are added.
        coef: rules that the scales are multiplied by.
        factors: what these give each tensor; 1 where there is none.
        agreement: as in `merge_tensor`.
        rounded: whether weights with deltas are rounded to the checkpoint's dtype, as a merge on disk
            would be; else they are float32, or float64.
    """

    name: str
    checkpoint: Checkpoint
    folder: Path
    processor: Path
    parts: ModelParts
    applied: tuple[tuple[TaskVector, float], ...] = ()
    method: str = method_of(())
    coef: tuple[str, ...] = ()
    factors: Mapping[str, float] = field(default_factory=dict)
    agreement: Agreement | None = None
    rounded: bool = True

    @property
    def window(self) -> float:
        """Seconds of audio that the encoder takes."""
        return self.parts.window

    @property
    def without_weights(self) -> SpeechModel:
        """The model's prompts and settings, known before its weights are read."""
        network = SimpleNamespace(config=self.parts.config, generation_config=self.parts.generation)
        return SpeechModel(self.name, network, self.parts.processor)

    @property
    def files(self) -> list[Path]:
        """Every file that is read, and must not be written."""
        return [
            *self.checkpoint.files,
            *(path for vector, _ in self.applied for path in vector.files),
        ]

    @property
    def identities(self) -> dict[Path, FileIdentity]:
        """What tells whether a file of weights or a delta changed since it was opened."""
        found = dict(self.checkpoint.identities)
        for vector, _ in self.applied:
            found |= vector.identities
        return found

    @cached_property
    def float_specs(self) -> dict[str, TensorSpec]:
        """Name -> shape and dtype of the float tensors that `read` returns."""
        stored = self.checkpoint.float_specs
        if not self.applied or self.rounded:
            return stored
        return {name: TensorSpec(spec.shape, _wide(spec.dtype)) for name, spec in stored.items()}

    def identity(self) -> str:
        """Return a digest of the weights, which does not depend on the files they are in."""
        own = base_fingerprint(self.checkpoint).digest
        if not self.applied:
            return own[:16]
        parts = [own] if self.method == method_of(()) else [own, self.method]
        parts += [f"{vector.identity()}*{scale!r}" for vector, scale in self.applied]
        parts += self.coef
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]

    def open(self, dtype: torch.dtype, device: str) -> SpeechModel:
        """Read the weights, apply the deltas, and put the model on a device.

        Raises:
            NonFinite: a NaN or an infinity in the weights.
        """
        state = {name: self.read(name) for name in self.checkpoint.specs}
        speech = build_model(self.name, self.folder, state, dtype, self.parts)
        speech.model.to(resolve_device(device))
        return speech

    def read(self, name: str) -> Tensor:
        """Return a tensor with the deltas applied.

        Raises:
            NonFinite: a NaN or an infinity in it.
        """
        value = self.checkpoint.read(name)
        if not self.checkpoint.specs[name].is_float:
            return value
        if not is_finite(value):
            raise non_finite(self.checkpoint.path, name)
        if self.applied:  # summed as a merge on disk would be
            method = find_method(self.method)
            dtype = value.dtype if self.rounded else _wide(value.dtype)
            value = merge_tensor(
                value, self._terms(name, method), method, dtype, self.agreement
            ).tensor
            if not is_finite(value):
                raise non_finite(self.name, name)
        return value

    @cached_property
    def _pruned(self) -> frozenset[str]:
        return select_pruned(self.checkpoint.float_specs, (), ())

    @cached_property
    def _allotted(self) -> Mapping[tuple[int, str], Budget]:
        def values(name: str) -> Iterator[Tensor]:
            return (self._delta(vector, name) for vector, _ in self.applied)

        method = find_method(self.method)
        return method.allot(self._pruned, values, len(self.applied), default_threads())

    def _delta(self, vector: TaskVector, name: str) -> Tensor:
        delta = dense(vector.read(name))
        if not is_finite(delta):  # a fine-tune's delta inherits the NaNs of the base
            blamed = vector if is_finite(self.checkpoint.read(name)) else self.checkpoint
            raise non_finite(blamed.path, name)
        return delta

    def _terms(self, name: str, method: Method) -> Iterator[Term]:
        prunes = method.prunes(None, None) and name in self._pruned
        for number, (vector, scale) in enumerate(self.applied):
            delta = self._delta(vector, name)
            scale *= self.factors.get(name, 1.0)
            keep = None
            if prunes:
                keep = self._allotted.get((number, name)) or budget(delta.shape, None, None)
            yield Term(delta, scale, keep)
            del delta  # before the next one is made


def find_models(
    named: Sequence[tuple[str, Path]],
    *,
    config_dir: Path | None = None,
    deltas: Sequence[Path] = (),
    scale: float = 1.0,
    method: str = method_of(()),
) -> list[ModelSource]:
    """Check several named models, and that all exist before one is downloaded.

    Raises:
        LorsmergeError: as `find_model`.
    """
    raise_all(check_hub_ids([*(path for _, path in named), *deltas]))
    return [
        find_model(
            path, name=name, config_dir=config_dir, deltas=deltas, scale=scale, method=method
        )
        for name, path in named
    ]


def find_model(
    path: Path,
    *,
    name: str = "",
    config_dir: Path | None = None,
    deltas: Sequence[Path] = (),
    scale: float = 1.0,
    method: str = method_of(()),
) -> ModelSource:
    """Check a model's files without reading its weights.

    Args:
        path: a model folder, a file of weights, or a Hub id.
        name: for tables; the path by default.
        config_dir: a folder with config, tokenizer and feature extractor, for a bare file; the
            file's own folder by default.
        deltas: to apply.
        scale: of each delta.
        method: as `find_method` reads it, how they are added; one without ratios.

    Raises:
        LorsmergeError: every fault found.
    """
    checkpoint = Checkpoint(path)
    own = checkpoint.folder or checkpoint.files[0].parent
    folder = local_path(config_dir, "companions") if config_dir else own
    processor = processor_folder(folder)
    given = config_dir or path
    called = given if is_hub_id(given) else folder
    faults: list[LorsmergeError] = check_model_folder(folder, processor, called)
    if config_dir is not None:
        faults += config_faults(checkpoint, folder)
    applied = []
    for delta in deltas:
        vector = open_task_vector(delta, checkpoint)
        faults += check_vector(checkpoint, vector)
        if isinstance(vector, DeltaFile):
            other = check_base(vector, checkpoint, base_fingerprint(checkpoint))
            faults += [other] if other else []
        applied.append((vector, scale))
    raise_all(faults)
    config = load_config(folder)
    raise_all(other_sizes(checkpoint, config.to_dict(), folder))
    parts = load_parts(config, folder, processor)
    return ModelSource(
        name or str(path), checkpoint, folder, processor, parts, tuple(applied), method
    )


def finetune_of(base: ModelSource, vector: TaskVector) -> ModelSource:
    """Return the model that a delta leads to: the base with all of it added, and not rounded.

    Where a fine-tune is in the delta's place, that is it. Config and tokenizer are the base's.

    Args:
        base: without deltas applied.
        vector: checked by `check_vector`.
    """
    if isinstance(vector, FinetunedTaskVector):
        return replace(base, name=str(vector.path), checkpoint=vector.finetuned)
    return replace(base, name=str(vector.path), applied=((vector, 1.0),), rounded=False)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def processes(device: str) -> PartialState:
    """Return this process's place among those of torchrun.

    Without a GPU accelerate has to be told so, or each process believes to be the only one.
    """
    return PartialState(cpu=resolve_device(device).type == "cpu")


def process_device(device: str, state: PartialState) -> str:
    """Return the device of this process: under torchrun each has a GPU of its own."""
    if device == "auto" and state.num_processes > 1 and torch.cuda.is_available():
        return f"cuda:{state.local_process_index % torch.cuda.device_count()}"
    return device


def compute_dtype(name: str, device: str) -> str:
    """Return the dtype that a name means on a device: `auto` is float16 on CUDA, and float32 elsewhere.

    Args:
        name: one of `DTYPES`, its abbreviation, or `auto`.
        device: as in `resolve_device`.

    Raises:
        UsageFault: there is no such dtype, or no such device.
    """
    check_compute_dtype(name)
    if name == AUTO_DTYPE:
        return "float16" if resolve_device(device).type == "cuda" else "float32"
    return full_dtype(name)


def parse_speech_dtype(name: str) -> torch.dtype:
    """Return the dtype to compute in.

    Raises:
        UsageFault: it is none of the three.
    """
    dtype: torch.dtype = getattr(torch, full_dtype(name))
    return dtype
