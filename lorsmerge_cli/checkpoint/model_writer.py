"""Writing a model: one safetensors file, or a Hugging Face folder, sharded when it is large."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from lorsmerge_cli.checkpoint.companions import copy_file, find_companions
from lorsmerge_cli.checkpoint.model_files import CONFIG, GENERATION, INDEX_FILE, SINGLE_FILE
from lorsmerge_cli.checkpoint.safetensors_file import (
    SafetensorsWriter,
    TensorSpec,
    dtype_name,
    metadata_size,
)
from lorsmerge_cli.errors import LorsmergeError, UnreadableFile, named, raise_all
from lorsmerge_cli.inputs import json_object, read_document
from lorsmerge_cli.outputs import write_json

RUN = "run.json"  # the record that `finetune` writes into a model folder
TRAINING_STATE = ("trainer_state.json", RUN, "rng_state*", "optimizer*", "scheduler*",
                  "scaler.pt", "training_args.bin", "checkpoint-*", "runs", "events.out.*", "wandb", "global_step*")  # fmt: skip
FORCED = ("forced_decoder_ids", "language", "task")  # set by a single-language fine-tune


class ModelWriter:
    """Weights being written; tensors arrive in any order, in parts, from any thread.

    Args:
        path: the file, or the folder, to write into.
        specs: every tensor except tied copies.
        tied: name of a tied copy -> the tensor it repeats; copies are written as well.
        metadata: strings for every file's header.
        max_shard_size: bytes per file of a folder; larger weights are split. None writes one file.
    """

    def __init__(
        self,
        path: Path,
        specs: Mapping[str, TensorSpec],
        tied: Mapping[str, str],
        metadata: Mapping[str, str],
        max_shard_size: int | None,
    ) -> None:
        self._folder = path if max_shard_size is not None else None
        self._metadata = {"format": "pt", **metadata}
        self._copies = {original: copy for copy, original in tied.items()}
        everything = dict(specs) | {copy: specs[original] for copy, original in tied.items()}
        shards = split_shards(everything, max_shard_size)
        size = metadata_size(self._metadata)
        self._writers: dict[str, SafetensorsWriter] = {}
        self._weight_map: dict[str, str] = {}
        self._specs = everything
        with ExitStack() as opened:
            self._shards = []
            for file_name, shard in shards.items():
                target = path / file_name if self._folder else path
                writer = opened.enter_context(SafetensorsWriter(target, shard, size))
                self._shards.append(writer)
                self._writers |= dict.fromkeys(shard, writer)
                self._weight_map |= dict.fromkeys(shard, file_name)
            self._closing = opened.pop_all()

    def write(self, name: str, values: Tensor, start: int = 0) -> None:
        """Write `values` from element `start` of a tensor on, in row-major order."""
        self._writers[name].write(name, values, start)
        if name in self._copies:
            copy = self._copies[name]
            self._writers[copy].write(copy, values, start)

    def finish(self, metadata: Mapping[str, str] | None = None) -> None:
        """Write the headers and, for several shards, the index.

        Args:
            metadata: strings that replace the announced ones in every header, of equal length.
        """
        for writer in self._shards:
            writer.finish(self._metadata | dict(metadata or {}))
        if self._folder and len(self._shards) > 1:
            total = {
                "total_parameters": sum(spec.numel for spec in self._specs.values()),
                "total_size": sum(spec.nbytes for spec in self._specs.values()),
            }
            write_json(
                self._folder / INDEX_FILE, {"metadata": total, "weight_map": self._weight_map}
            )

    def __enter__(self) -> ModelWriter:
        return self

    def __exit__(self, *_error: object) -> None:
        self._closing.close()


def split_shards(
    specs: Mapping[str, TensorSpec], max_shard_size: int | None
) -> dict[str, dict[str, TensorSpec]]:
    """Return file name -> its tensors, in the given order, each file filled up to the limit."""
    shards: list[dict[str, TensorSpec]] = [{}]
    size = 0
    for name, spec in specs.items():
        if max_shard_size is not None and shards[-1] and size + spec.nbytes > max_shard_size:
            shards.append({})
            size = 0
        shards[-1][name] = spec
        size += spec.nbytes
    if len(shards) == 1:
        return {SINGLE_FILE: shards[0]}
    count = len(shards)
    return {
        f"model-{number:05d}-of-{count:05d}.safetensors": shard
        for number, shard in enumerate(shards, 1)
    }


def check_companions(folder: Path) -> list[LorsmergeError]:
    """Return the faults that prevent a model folder from being copied.

    These are links that lead out of it or nowhere, a FIFO or a device instead of a file, more
    bytes than any model has beside its weights, and configs that are not JSON.
    """
    found = find_companions(folder)
    faults = list(found.faults)
    for name in (CONFIG, GENERATION):
        try:
            if name in found.files:
                json.dumps(json_object(read_document(found.files[name])))  # as when writing it
        except UnreadableFile as fault:
            faults.append(fault)
        except (OSError, ValueError, RecursionError) as error:
            what = f"{folder / name} is no JSON config ({error})."
            faults.append(UnreadableFile(what, "Copy or download it again."))
    return faults


def notes_on_code(folder: Path) -> list[str]:
    """Return a note that names the Python files copied with a model folder."""
    code = find_companions(folder).code
    if not code:
        return []
    return [
        f"{folder} has code of its own, which its configs name and which is copied ({named(code)}); "
        "it runs when somebody opens the model with trust_remote_code=True."
    ]


def copy_companions(source: Path, target: Path, dtype: torch.dtype) -> None:
    """Copy a model folder's config, tokenizer, processor and licence, but not its weights.

    Python code is copied only where a config's `auto_map` names it. A language or task that a
    fine-tune forces on every input is dropped, because a merged model serves several.

    Args:
        source: the model folder.
        target: the folder to copy to.
        dtype: of the weights in `target`, written into its config.

    Raises:
        LorsmergeError: a fault that `check_companions` returns.
    """
    raise_all(check_companions(source))
    for name, file in find_companions(source).files.items():
        copy_file(file, target / name)
    config_file = target / CONFIG
    if config_file.is_file():
        config = json_object(config_file.read_bytes())
        config.pop("forced_decoder_ids", None)
        old_key = "torch_dtype" in config and "dtype" not in config
        config["torch_dtype" if old_key else "dtype"] = dtype_name(dtype)
        write_json(config_file, config)
    generation_file = target / GENERATION
    if generation_file.is_file():
        generation = json_object(generation_file.read_bytes())
        write_json(generation_file, {k: v for k, v in generation.items() if k not in FORCED})
