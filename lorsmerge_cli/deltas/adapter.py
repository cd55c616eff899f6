"""A fine-tune saved as a PEFT LoRA adapter, read as a low-rank delta.

    adapter_config.json             lora_alpha, r, ... : the scaling of the factors
    adapter_model.safetensors       X.lora_A.weight (r, k), X.lora_B.weight (d, r), and whole tensors of
                                    `modules_to_save`; every name begins with `base_model.model.`

    delta of X.weight = scaling * B @ A,   scaling = lora_alpha / r, or lora_alpha / sqrt(r) for rsLoRA

Adapters of any other form (DoRA, PiSSA and others that change the base, ...) are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lorsmerge_cli.checkpoint.fingerprint import BFLOAT16_STEP, fingerprint
from lorsmerge_cli.checkpoint.model_files import ADAPTER_CONFIG, ADAPTER_FILES
from lorsmerge_cli.checkpoint.names import is_linear_weight
from lorsmerge_cli.checkpoint.reader import TIED, Checkpoint, open_weights
from lorsmerge_cli.checkpoint.references import local_path
from lorsmerge_cli.checkpoint.safetensors_file import DTYPE_CODES, TensorSpec
from lorsmerge_cli.core.low_rank_sparse import Delta, LowRankSparse, accumulable, dense, zeros
from lorsmerge_cli.deltas.adapter_config import read_adapter_config
from lorsmerge_cli.deltas.conv1d import conv1d_weights
from lorsmerge_cli.deltas.encodings import TensorLayout
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UnreadableFile, named, raise_all
from lorsmerge_cli.inputs import FileIdentity

PREFIX = "base_model.model."
EMBEDDING = (".lora_embedding_A", ".lora_embedding_B")
FACTORS = ((".lora_A.weight", ".lora_B.weight"), EMBEDDING)  # suffixes of a module's name


class AdapterTaskVector:
    """A LoRA adapter as a `TaskVector`: zero for every tensor that it does not change.

    Raises:
        UnreadableFile: a file is missing or damaged.
        Mismatch: the adapter is not plain LoRA, or belongs to another model than the base.
    """

    def __init__(self, path: Path, base: Checkpoint) -> None:
        self.path = path
        folder = local_path(path)
        self.base = base
        config_file = folder / ADAPTER_CONFIG
        weights = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
        if weights is None:
            raise UnreadableFile(
                f"{path} holds {ADAPTER_CONFIG}, but no {ADAPTER_FILES[0]}.",
                "Copy or download the folder again.",
            )
        self.config = read_adapter_config(config_file, path)
        self.files = [config_file, weights, folder]
        config_identity = FileIdentity.of(config_file)
        self._file = open_weights(weights)
        self.identities = {config_file: config_identity, weights: self._file.identity}
        self._factors, self._whole = self._sort()
        self._transposed = self._orientations()
        raise_all(self._misfits())
        self._scalings = {
            name: self.config.scaling(name.removesuffix(".weight"), self._rank(name))
            for name in self._factors
        }
        whole = [self._file.specs[key].dtype for key in self._whole.values()]
        half = [dtype for dtype in whole if dtype in (torch.float16, torch.bfloat16)]
        # small updates are lost in half-precision whole tensors, but not in factors
        self.finetuned_dtype = DTYPE_CODES[half[0]] if half else "F32"

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """Shape and dtype of the delta of every float tensor of the base."""
        return {name: layout.spec for name, layout in self.layouts.items()}

    @cached_property
    def layouts(self) -> dict[str, TensorLayout]:
        """How a delta file stores each tensor: as factors, dense, or as zero."""
        return {name: self._layout(name) for name in self.base.float_specs}

    def _layout(self, name: str) -> TensorLayout:
        shape, dtype = self.base.specs[name].shape, self.base.specs[name].dtype
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        if name in self._whole:
            return TensorLayout("dense", shape, wide)
        return TensorLayout("lors", shape, wide, self._rank(name))

    def _rank(self, name: str) -> int:
        return self._file.specs[self._factors[name][0]].shape[0] if name in self._factors else 0

    def read(self, name: str) -> Delta:
        """Return scaling * B @ A as two factors, or a whole tensor minus the base's."""
        layout = self._layout(name)
        if name in self._whole:
            finetuned = accumulable(self._file.read(self._whole[name]))
            return finetuned - accumulable(self.base.read(name))
        if name not in self._factors:
            return zeros(layout.shape, layout.dtype)
        key_a, key_b = self._factors[name]
        a, b = (self._file.read(key).to(layout.dtype) for key in (key_a, key_b))
        b = b * self._scalings[name]
        if name in self._transposed:
            return LowRankSparse(a.T.contiguous(), b.T.contiguous())
        return LowRankSparse(b, a)

    def read_block(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of one delta, row-major, in float32 or float64."""
        if name in self._whole:
            finetuned = self._file.read(self._whole[name]).reshape(-1)[start:stop]
            base = self.base.read(name).reshape(-1)[start:stop]
            return accumulable(finetuned) - accumulable(base)
        if name in self._factors:
            return dense(self.read(name)).reshape(-1)[start:stop]
        return torch.zeros(stop - start, dtype=self._layout(name).dtype)

    @property
    def stored(self) -> dict[str, TensorSpec]:
        """The factors and the whole tensors, by their keys."""
        keys = [key for pair in self._factors.values() for key in pair] + [*self._whole.values()]
        return {key: self._file.specs[key] for key in keys}

    def stored_parts(self, name: str, start: int, stop: int) -> Iterator[tuple[str, int, Tensor]]:
        """Yield what is stored of elements [start, stop), as `TaskVector.stored_parts`."""
        if name in self._whole:
            key = self._whole[name]
            yield key, start, self._file.read(key).reshape(-1)[start:stop]
        elif start == 0:
            for key in self._factors.get(name, ()):
                yield key, 0, self._file.read(key)

    def is_pruned(self, name: str) -> bool:
        """Tell whether the tensor has factors."""
        return name in self._factors

    def identity(self) -> str:
        """Return a digest of the stored numbers and their scalings."""
        stored = fingerprint(self._file.specs, self._file.read).digest
        text = json.dumps([stored, sorted(self._scalings.items())])
        return hashlib.sha256(text.encode()).hexdigest()

    def _orientations(self) -> frozenset[str]:
        """Return the names of tensors that B @ A is the transpose of: embeddings and Conv1D layers.

        If the shape of the base's tensor fits both ways and the type of the layer is unknown, the
        adapter's `fan_in_fan_out` decides.
        """
        conv1d = conv1d_weights(self.base.float_specs)
        transposed = set()
        for name, (key_a, key_b) in self._factors.items():
            rows, columns = self._product(key_a, key_b)
            found = conv1d.get(name) if rows == columns else self._fits_transposed(name)
            if key_a.endswith(EMBEDDING) or (self.config.transposed if found is None else found):
                transposed.add(name)
        return frozenset(transposed)

    def _fits_transposed(self, name: str) -> bool | None:
        """Tell whether the transpose of B @ A has the base's shape; None if the base lacks it."""
        spec = self.base.specs.get(name)
        return None if spec is None else spec.shape == self._product(*self._factors[name])[::-1]

    def _sort(self) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
        """Map base tensors to the keys of their two factors, and to the key of a replacement."""
        factors: dict[str, tuple[str, str]] = {}
        whole: dict[str, str] = {}
        odd = []
        keys = self._file.specs.keys()
        for key in sorted(keys):
            module, partner = _partner(key)
            if partner in keys:
                a, b = sorted((key, partner))
                factors[module.removeprefix(PREFIX) + ".weight"] = (a, b)
                odd += [] if self._have_a_product(a, b) else [a]
            elif "lora_" in key or not key.startswith(PREFIX):
                odd.append(key)
            else:
                whole[key.removeprefix(PREFIX).replace(".base_layer.", ".")] = key
        if odd:
            raise Mismatch(
                f"{self._file.path} holds tensors that are not plain LoRA: {named(sorted(set(odd)))}.",
                "Merge the adapter into its base with peft's `merge_and_unload()`, and take the "
                "delta of that.",
            )
        # PEFT saves an unchanged embedding beside its factors
        self._copies = {name: whole.pop(name) for name in factors.keys() & whole.keys()}
        return factors, whole

    def _misfits(self) -> list[LorsmergeError]:
        """Return faults for tensors that the base lacks, or that differ from it in shape or value."""
        wanted = self.base.float_specs
        shapes = {name: self._shape(name) for name in self._factors}
        shapes |= {name: self._file.specs[key].shape for name, key in self._whole.items()}
        untied = self._tied(shapes)
        absent = sorted(shapes.keys() - wanted.keys() - set(untied))
        reshaped = [
            f"{name} {list(shape)} for {list(wanted[name].shape)}"
            for name, shape in shapes.items()
            if name in wanted and shape != wanted[name].shape
        ]
        fitting = not (absent or untied or reshaped)
        other = [name for name in sorted(self._copies) if fitting and not self._is_copy(name)]
        trained_on = self.config.trained_on
        its_base = f"Give the base it was trained on ({repr(trained_on) if trained_on else 'which it does not name'})."
        return [
            Mismatch(f"{self.path} {problem}: {named(names)}.", remedy)
            for problem, names, remedy in (
                (f"changes tensors that the base {self.base.path} lacks", absent, its_base),
                (f"changes modules that the base {self.base.path} ties to its embedding", untied,
                 "Train it without that module: the base has one tensor for both."),
                ("changes tensors of another shape than the base's", reshaped, its_base),
                (f"was trained on another base than {self.base.path}, according to its copy", other, its_base),
            )
            if names
        ]  # fmt: skip

    def _tied(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Return output layers that the base lacks because it ties them to an embedding."""
        wanted = self.base.float_specs
        matrices = {name: spec for name, spec in wanted.items() if len(spec.shape) == 2}
        tables = {spec.shape for name, spec in matrices.items() if not is_linear_weight(name, spec)}
        absent = {
            name: TensorSpec(shapes[name], torch.float32) for name in shapes.keys() - wanted.keys()
        }
        return sorted(
            name
            for name, spec in absent.items()
            if name in TIED or (spec.shape in tables and not is_linear_weight(name, spec))
        )

    def _is_copy(self, name: str) -> bool:
        copy, base = self._file.read(self._copies[name]).float(), self.base.read(name).float()
        return copy.shape == base.shape and torch.allclose(copy, base, BFLOAT16_STEP, 1e-7)

    def _have_a_product(self, key_a: str, key_b: str) -> bool:
        """Tell whether two factors are matrices that fit, unlike those of convolutions."""
        a, b = self._file.specs[key_a].shape, self._file.specs[key_b].shape
        return len(a) == len(b) == 2 and a[0] == b[1] > 0

    def _shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a delta that has factors."""
        product = self._product(*self._factors[name])
        return product[::-1] if name in self._transposed else product

    def _product(self, key_a: str, key_b: str) -> tuple[int, ...]:
        """Return the shape of B @ A."""
        return self._file.specs[key_b].shape[0], self._file.specs[key_a].shape[1]


def _partner(key: str) -> tuple[str, str]:
    """Return a factor's module and the key of the other factor; empty for other keys."""
    for a, b in FACTORS:
        for own, other in ((a, b), (b, a)):
            if key.endswith(own):
                module = key.removesuffix(own)
                return module, module + other
    return "", ""
