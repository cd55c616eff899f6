"""A checkpoint: one file of weights, a model folder, or a sharded one, here or on the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lorsmerge_cli.checkpoint.model_files import (
    INDEX_FILE,
    PICKLED_FILE,
    PICKLED_INDEX,
    SINGLE_FILE,
    is_adapter,
)
from lorsmerge_cli.checkpoint.pickled_file import PickledFile
from lorsmerge_cli.checkpoint.references import local_path
from lorsmerge_cli.checkpoint.safetensors_file import (
    SafetensorsFile,
    TensorSpec,
    check_readable,
    is_pickle,
)
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UnreadableFile, named, raise_all
from lorsmerge_cli.inputs import FileIdentity

DELTA_MARK = "lorsmerge.format_version"

# A name that repeats another tensor: Whisper's output projection is its token embedding.
TIED = {"proj_out.weight": "model.decoder.embed_tokens.weight"}

BLOCK = 1 << 20  # entries: 4 MB of float32 stay in a core's cache


class Checkpoint:
    """Named tensors that are read one at a time.

    Attributes:
        path: what the user gave, which may be a Hub id.
        folder: the model folder that holds config and tokenizer, None for a bare file.
        specs: name -> shape and dtype; a tied copy is left out and listed in `tied`.
        dims: what a file of OpenAI's says of its model, empty for others.
        tied: name of the copy -> name of the tensor it repeats.
        files: every weight file, for size and overwrite checks.

    Raises:
        UnreadableFile: nothing at the path, or files that are damaged, missing or of another kind.
        HubFault: nothing on the Hub, or nothing that can be had from it.
        Mismatch: a tied copy that differs from the tensor it should repeat.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        local = local_path(path)
        self.folder = local if local.is_dir() else None
        shards = _open_shards(local)
        self._shards = shards
        self.files = [shard.path for shard in shards]
        self.dims = next((shard.dims for shard in shards if isinstance(shard, PickledFile)), {})
        self._holder = {name: shard for shard in shards for name in shard.specs}
        self.specs: dict[str, TensorSpec] = {
            name: shard.specs[name] for name, shard in self._holder.items()
        }
        if any(DELTA_MARK in shard.metadata for shard in shards):
            raise UnreadableFile(
                f"{path} is a delta, and a checkpoint is needed here.",
                "Give the base or the fine-tune itself.",
            )
        if not self.specs:
            raise UnreadableFile(f"{path} holds no tensors.")
        self.tied = self._drop_tied()

    def read(self, name: str) -> Tensor:
        """The tensor as stored, backed by the mapped file."""
        return self._holder[name].read(name)

    @property
    def identities(self) -> dict[Path, FileIdentity]:
        """What tells whether a weight file changed since it was opened."""
        return {shard.path: shard.identity for shard in self._shards}

    @property
    def sources(self) -> list[Path]:
        """Everything that must not be written: the files and the folder they lie in."""
        return [*self.files, *([self.folder] if self.folder else [])]

    @property
    def float_specs(self) -> dict[str, TensorSpec]:
        return {name: spec for name, spec in self.specs.items() if spec.is_float}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that most of the float entries have; float32 where there are none."""
        sizes: dict[torch.dtype, int] = {}
        for spec in self.float_specs.values():
            sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.numel
        return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)

    def _drop_tied(self) -> dict[str, str]:
        tied = {
            copy: original
            for copy, original in TIED.items()
            if copy in self.specs and original in self.specs
        }
        for copy, original in tied.items():
            same_layout = self.specs[copy] == self.specs[original]
            if not same_layout or not _equal(self.read(copy), self.read(original)):
                raise Mismatch(
                    f"{self.path}: {copy!r} differs from {original!r}, which Whisper ties to it.",
                    "Save the model with transformers, which keeps them one tensor, or drop the wrong one.",
                )
            del self.specs[copy]
        return tied


def _equal(a: Tensor, b: Tensor) -> bool:
    return all(torch.equal(x, y) for x, y in zip(blocks_of(a), blocks_of(b), strict=True))


def blocks_of(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor's entries in row-major order, a block at a time."""
    return iter(tensor.reshape(-1).split(BLOCK))


WeightFile = SafetensorsFile | PickledFile


def open_weights(path: Path) -> WeightFile:
    """A file of tensors by name, in either format.

    Raises:
        UnreadableFile: it is neither, or damaged.
    """
    check_readable(path)
    return PickledFile(path) if is_pickle(path) else SafetensorsFile(path)


def is_delta(path: Path) -> bool:
    """Whether a path or a Hub id leads to a delta.

    Raises:
        LorsmergeError: it leads nowhere, or to a file that holds no tensors by name.
    """
    file = local_path(path)
    return file.is_file() and DELTA_MARK in open_weights(file).metadata


def _open_shards(path: Path) -> list[WeightFile]:
    if path.is_file():
        return [open_weights(path)]
    for index, single in ((INDEX_FILE, SINGLE_FILE), (PICKLED_INDEX, PICKLED_FILE)):
        if (path / index).is_file():
            return _open_indexed(path / index)
        if (path / single).is_file():
            return [open_weights(path / single)]
    raise _no_weights(path)


def _open_indexed(index: Path) -> list[WeightFile]:
    folder = index.parent
    try:
        weight_map: Mapping[str, str] = json.loads(index.read_text())["weight_map"]
        file_names = sorted(set(weight_map.values()))
        inside = [name for name in file_names if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableFile(
            f"{index} is no shard index: {type(error).__name__}: {error}.", "Download it again."
        ) from error
    if inside != file_names:
        raise UnreadableFile(f"{index} names files outside of its folder.", "Download it again.")
    faults: list[LorsmergeError] = []
    shards: list[WeightFile] = []
    for file_name in file_names:
        try:
            if not (folder / file_name).exists():
                raise UnreadableFile(
                    f"{folder / file_name}: no such file, and {index.name} lists it.",
                    "Copy or download the folder again.",
                )
            shards.append(open_weights(folder / file_name))
        except UnreadableFile as error:
            faults.append(error)
    raise_all(faults)
    held = {(name, shard.path.name) for shard in shards for name in shard.specs}
    absent = sorted(set(weight_map.items()) - held)
    extra = sorted(held - set(weight_map.items()))
    if absent or extra:
        wrong = [f"{name} in {file_name}" for name, file_name in absent or extra]
        how = "names tensors that are not there" if absent else "leaves out tensors of its shards"
        raise UnreadableFile(f"{index} {how}: {named(wrong)}.", "Download the folder again.")
    return shards


def _no_weights(folder: Path) -> UnreadableFile:
    if is_adapter(folder):
        return UnreadableFile(
            f"{folder} is a PEFT adapter, and a whole model is needed here.",
            "It stands where a fine-tune or a delta does: `lorsmerge delta BASE ADAPTER -o x.delta`, "
            "`lorsmerge merge BASE ADAPTER`, `lorsmerge eval BASE --apply ADAPTER --scale 1`.",
        )
    return UnreadableFile(
        f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}, nor {PICKLED_FILE}.",
        "Give a model folder, or the file of weights itself.",
    )
