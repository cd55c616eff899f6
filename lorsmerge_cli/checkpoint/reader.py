"""A checkpoint on disk: one safetensors file, a model folder, or a sharded model folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lorsmerge_cli.checkpoint.safetensors_file import SafetensorsFile, TensorSpec
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UnreadableFile, named, raise_all

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DELTA_MARK = "lorsmerge.format_version"

# A name that repeats another tensor: Whisper's output projection is its token embedding.
TIED = {"proj_out.weight": "model.decoder.embed_tokens.weight"}

BLOCK = 1 << 20  # entries: 4 MB of float32 stay in a core's cache


class Checkpoint:
    """Named tensors that are read one at a time.

    Attributes:
        path: what the user gave.
        folder: the model folder that holds config and tokenizer, None for a bare file.
        specs: name -> shape and dtype; a tied copy is left out and listed in `tied`.
        tied: name of the copy -> name of the tensor it repeats.
        files: every weight file, for size and overwrite checks.

    Raises:
        UnreadableFile: nothing at the path, or files that are damaged, missing or of another kind.
        Mismatch: a tied copy that differs from the tensor it should repeat.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path if path.is_dir() else None
        shards = _open_shards(path)
        self.files = [shard.path for shard in shards]
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


def _open_shards(path: Path) -> list[SafetensorsFile]:
    if not path.exists():
        hint = "Check the path."
        if len(path.parts) == 2 and not path.is_absolute():
            hint += f" For a model on the Hub: `hf download {path} --local-dir {path.name}` first."
        raise UnreadableFile(f"{path}: no such file or folder.", hint)
    if path.is_file():
        return [SafetensorsFile(path)]
    if (path / INDEX_FILE).is_file():
        return _open_indexed(path)
    if (path / SINGLE_FILE).is_file():
        return [SafetensorsFile(path / SINGLE_FILE)]
    raise _no_weights(path)


def _open_indexed(folder: Path) -> list[SafetensorsFile]:
    index = folder / INDEX_FILE
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
    shards: list[SafetensorsFile] = []
    for file_name in file_names:
        try:
            shards.append(SafetensorsFile(folder / file_name))
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
    if (folder / "adapter_config.json").is_file():
        return UnreadableFile(
            f"{folder} is a PEFT adapter, not a whole model.",
            "Merge it into its base with peft's `merge_and_unload()` and save that.",
        )
    if any(folder.glob("pytorch_model*.bin")):
        return UnreadableFile(
            f"{folder} holds its weights as a pickle (pytorch_model.bin), not as safetensors.",
            "Load it with transformers' `from_pretrained` and `save_pretrained` it.",
        )
    return UnreadableFile(
        f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}.",
        "Give a model folder, or the .safetensors file itself.",
    )
