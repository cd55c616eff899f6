"""A checkpoint: one file of weights, a model folder, or a sharded one, local or on the Hub."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lorsmerge_cli.checkpoint.model_files import (
    INDEX_FILE,
    PICKLED_FILE,
    PICKLED_INDEX,
    SINGLE_FILE,
    is_adapter,
    weights_in,
)
from lorsmerge_cli.checkpoint.pickled_file import PickledFile
from lorsmerge_cli.checkpoint.references import local_path
from lorsmerge_cli.checkpoint.safetensors_file import (
    SafetensorsFile,
    TensorSpec,
    is_pickle,
    quantised,
)
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UnreadableFile, named, raise_all
from lorsmerge_cli.inputs import FileIdentity, read_json
from lorsmerge_cli.quoting import command

DELTA_MARK = "lorsmerge.format_version"
TALL = "tall-"  # before the format's version of a file of TALL masks, in that mark
STATISTICS_MARK = "lorsmerge.statistics_version"

# Tied copies of another tensor: Whisper's output projection is its token embedding.
TIED = {"proj_out.weight": "model.decoder.embed_tokens.weight"}

# Suffixes of a quantised model's tensors: bitsandbytes, GPTQ and AWQ, FP8, compressed-tensors
QUANTISED = (".SCB", ".absmax", ".quant_map", ".qweight", ".qzeros", ".weight_scale_inv",
             ".weight_packed")  # fmt: skip

BLOCK = 1 << 20  # elements: 4 MB of float32 stay in a core's cache


class Checkpoint:
    """Named tensors that are read one at a time.

    Attributes:
        path: what the user gave, which may be a Hub id.
        folder: the model folder that holds config and tokenizer, None for a bare file.
        specs: name -> shape and dtype; a tied copy is listed in `tied` instead.
        dims: sizes recorded in a file of OpenAI's, empty for others.
        tied: name of the copy -> name of the tensor it repeats.
        files: every weight file, for size and overwrite checks.
        notes: warnings for the user, such as of weights in the folder that are not read.

    Args:
        path: a file, a folder or a Hub id.
        opened: the file, if `path` is one that is open already.
        prefix: names that differ from those in `like` only by this prefix, on either side, are
            replaced by those.
        like: names of another model.

    Raises:
        UnreadableFile: nothing at the path, or files that are damaged, missing, quantised or of
            another format.
        HubFault: the Hub does not have it, or refuses it.
        Mismatch: a tied copy differs from the tensor it should repeat.
    """

    def __init__(
        self,
        path: Path,
        opened: WeightFile | None = None,
        prefix: str = "",
        like: Container[str] = (),
    ) -> None:
        self.path = path
        local = local_path(path)
        self.folder = local if os.path.isdir(local) else None
        shards, self.notes = ([opened], ()) if opened else _open_shards(local)
        self._shards = shards
        indexes = (local / name for name in (INDEX_FILE, PICKLED_INDEX))
        self._index = {
            path: FileIdentity.of(path) for path in indexes if len(shards) > 1 and path.is_file()
        }
        self.files = [shard.path for shard in shards]
        self.dims = next((shard.dims for shard in shards if isinstance(shard, PickledFile)), {})
        if any(is_tall(shard.metadata) for shard in shards):
            raise tall_refused(path)
        if any(DELTA_MARK in shard.metadata for shard in shards):
            raise UnreadableFile(
                f"{path} is a delta, and a checkpoint is needed here.",
                "Give the base or the fine-tune itself.",
            )
        if any(STATISTICS_MARK in shard.metadata for shard in shards):
            raise UnreadableFile(
                f"{path} has statistics of a fine-tune, and weights are needed here.",
                "Give it to `merge` with --stats (one before each such file), and the fine-tune or its "
                "delta as well.",
            )
        self._holder = {
            _alike(name, prefix, like): (shard, name) for shard in shards for name in shard.specs
        }
        if len(self._holder) < sum(len(shard.specs) for shard in shards):
            raise Mismatch(f"{path} has tensors of one name with {prefix!r} before it and without.")
        self.specs: dict[str, TensorSpec] = {
            name: shard.specs[stored] for name, (shard, stored) in self._holder.items()
        }
        if not self.specs:
            raise UnreadableFile(f"{path} holds no tensors.")
        self._refuse_quantised()
        self.tied = self._drop_tied()

    def read(self, name: str) -> Tensor:
        """Return a tensor as stored, mapped from the file."""
        shard, stored = self._holder[name]
        return shard.read(stored)

    @property
    def identities(self) -> dict[Path, FileIdentity]:
        """Identity of each file, to detect that it changed since it was opened."""
        return self._index | {shard.path: shard.identity for shard in self._shards}

    @property
    def sources(self) -> list[Path]:
        """Paths that must not be written: the files and their folder."""
        return [*self.files, *([self.folder] if self.folder else [])]

    @cached_property
    def float_specs(self) -> dict[str, TensorSpec]:
        """Name -> shape and dtype of the float tensors, the only ones that have deltas."""
        return {name: spec for name, spec in self.specs.items() if spec.is_float}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most float elements; float32 if there are none."""
        sizes: dict[torch.dtype, int] = {}
        for spec in self.float_specs.values():
            sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.numel
        return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)

    def _refuse_quantised(self) -> None:
        if signs := [name for name in self.specs if name.endswith(QUANTISED)]:
            raise quantised(self.path, named(signs))
        try:
            config = read_json(self.folder / "config.json") if self.folder else {}
        except (OSError, ValueError, UnreadableFile):
            return  # reported where the config is needed
        if isinstance(config, dict) and config.get("quantization_config"):
            raise quantised(self.path, "its config.json has a quantization_config")

    def _drop_tied(self) -> dict[str, str]:
        tied = {
            copy: original
            for copy, original in TIED.items()
            if copy in self.specs and original in self.specs
        }
        for copy, original in tied.items():
            same_layout = self.specs[copy] == self.specs[original]
            if not same_layout or not equal(self.read(copy), self.read(original)):
                raise Mismatch(
                    f"{self.path}: {copy!r} differs from {original!r}, which Whisper ties to it.",
                    "Save the model with transformers, which keeps them one tensor, or drop the wrong one.",
                )
            del self.specs[copy]
        return tied


def equal(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors of one shape are equal, reading a block at a time."""
    blocks = zip(a.reshape(-1).split(BLOCK), b.reshape(-1).split(BLOCK), strict=True)
    return all(torch.equal(x, y) for x, y in blocks)


WeightFile = SafetensorsFile | PickledFile


def _alike(name: str, prefix: str, like: Container[str]) -> str:
    """Return the name in `like` that differs from `name` only by a prefix, else `name`."""
    if not prefix or name in like:
        return name
    others = (name.removeprefix(prefix), prefix + name)
    return next((other for other in others if other in like), name)


def is_tall(metadata: Mapping[str, str]) -> bool:
    """Tell whether a file's metadata is that of a file of TALL masks, of any version."""
    return metadata.get(DELTA_MARK, "").startswith(TALL)


def tall_refused(path: Path) -> UnreadableFile:
    """Return the error for a file of TALL masks where a delta or a checkpoint is needed."""
    made = command("lorsmerge", "merge", "BASE", "--from", path, "--for", "TASK", "-o", "model/")
    return UnreadableFile(
        f"{path} is a file of TALL masks, from which the models of several tasks can be made.",
        f"Make one first, `{made}`, and use it; `{command('lorsmerge', 'inspect', path)}` lists the "
        "tasks.",
    )


def open_weights(path: Path) -> WeightFile:
    """Open a safetensors file or a pickled state dict.

    Raises:
        UnreadableFile: it is neither, or damaged.
    """
    return PickledFile(path) if is_pickle(path) else SafetensorsFile(path)


def _open_shards(path: Path) -> tuple[list[WeightFile], tuple[str, ...]]:
    """Open the files of a checkpoint; return them and notes on its folder."""
    if not os.path.isdir(path):
        return [open_weights(path)], ()
    try:
        names = [name for name in os.listdir(path) if not os.path.isdir(path / name)]
    except OSError as error:
        raise UnreadableFile(f"{path} cannot be read: {error.strerror}.") from error
    there = weights_in(names)
    if not there:
        raise _no_weights(path)
    first, *others = there
    ignored = (
        f"{path / first} is read, which transformers takes first; in the same folder "
        f"{named(others)} {'is' if len(others) == 1 else 'are'} not."
    )
    notes = [ignored] if others else []
    if first.endswith(".json"):
        shards = _open_indexed(path / first, notes)
    else:
        shards = [open_weights(path / first)]
    return shards, tuple(notes)


def _open_indexed(index: Path, notes: list[str]) -> list[WeightFile]:
    """Open the shards that an index lists; add a note if it is wrong about their tensors."""
    weight_map = _weight_map(index)
    faults: list[LorsmergeError] = []
    shards: list[WeightFile] = []
    for file_name in sorted(set(weight_map.values())):
        try:
            if not os.path.exists(index.parent / file_name):
                raise UnreadableFile(
                    f"{index.parent / file_name}: no such file, and {index.name} lists it.",
                    "Copy or download the folder again.",
                )
            shards.append(open_weights(index.parent / file_name))
        except UnreadableFile as error:
            faults.append(error)
    raise_all(faults)
    held: dict[str, str] = {}
    for shard in shards:
        if twice := sorted(held.keys() & shard.specs.keys()):
            raise UnreadableFile(
                f"{index} lists two files that hold the same tensors, {held[twice[0]]} and "
                f"{shard.path.name}: {named(twice)}.",
                "Download the folder again.",
            )
        held |= dict.fromkeys(shard.specs, shard.path.name)
    for what, names in (
        ("names tensors that its files do not hold", weight_map.keys() - held.keys()),
        ("omits tensors that its files hold", held.keys() - weight_map.keys()),
        ("names the wrong file of", {n for n in held.keys() & weight_map.keys() if held[n] != weight_map[n]}),
    ):  # fmt: skip
        if names:
            notes.append(
                f"{index} {what}: {named(sorted(names))}. The tensors in the files are read."
            )
    return shards


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = read_json(index)["weight_map"]
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            raise ValueError("weight_map is not a table of file names")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnreadableFile(
            f"{index} is not a shard index: {type(error).__name__}: {error}.", "Download it again."
        ) from error
    if any(Path(name).name != name for name in found.values()):
        raise UnreadableFile(f"{index} names files outside of its folder.", "Download it again.")
    return found


def _no_weights(folder: Path) -> UnreadableFile:
    if is_adapter(folder):
        return UnreadableFile(
            f"{folder} is a PEFT adapter, and a whole model is needed here.",
            "Use it like a fine-tune or a delta: `lorsmerge delta BASE ADAPTER -o x.delta`, "
            "`lorsmerge merge BASE ADAPTER`, `lorsmerge eval BASE --apply ADAPTER --scale 1`.",
        )
    return UnreadableFile(
        f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}, nor {PICKLED_FILE}.",
        "Give a model folder, or the file of weights itself.",
    )
