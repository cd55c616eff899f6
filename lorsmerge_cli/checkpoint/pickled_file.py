"""One pickled state dict: OpenAI's `small.pt`, an old `pytorch_model.bin`, an `adapter_model.bin`.

A pickle may hold code. It is only ever read with PyTorch's `weights_only=True`, which takes tensors
and plain containers and refuses all else, so that nothing in a file is executed.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorsmerge_cli.checkpoint.openai_names import from_openai, is_openai
from lorsmerge_cli.checkpoint.safetensors_file import DTYPE_CODES, TensorSpec, check_readable
from lorsmerge_cli.errors import UnreadableFile, named
from lorsmerge_cli.inputs import FileIdentity
from lorsmerge_cli.quoting import python_command

OPENAI_STATE = "model_state_dict"  # beside `dims` in what OpenAI publishes


class PickledFile:
    """A state dict open for reading: its tensors are mapped, and stay on disk until `read`.

    Attributes:
        path: the file.
        specs: name -> shape and dtype; names are Hugging Face's where the file has OpenAI's.
        dims: OpenAI's description of its model (`n_audio_head`, ...), empty in another file.
        metadata: empty; for files that have some.

    Raises:
        UnreadableFile: damaged, or with anything but tensors by name in it; none of it was executed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        check_readable(path)
        self.identity = FileIdentity.of(path)
        content = _load(path)
        self.dims: dict[str, int] = {}
        if isinstance(content, Mapping) and OPENAI_STATE in content:
            dims = content.get("dims")
            self.dims = dict(dims) if isinstance(dims, Mapping) else {}
            content = content[OPENAI_STATE]
        self._tensors = _tensors(path, content)
        if is_openai(self._tensors):
            self._tensors = {from_openai(name): value for name, value in self._tensors.items()}
        self.specs = {
            name: TensorSpec(tuple(value.shape), value.dtype)
            for name, value in self._tensors.items()
        }

    def read(self, name: str) -> Tensor:
        """The tensor as stored, backed by the mapped file where it is laid out row by row."""
        return self._tensors[name].contiguous()


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # of pickle protocols: it works or it does not
            # only the format since PyTorch 1.6, a zip file, can be mapped
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # whatever PyTorch makes of bytes that anyone may have written
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise _code_inside(path, found[1]) if found else _damaged(path, error) from None


def _code_inside(path: Path, what: str) -> UnreadableFile:
    target = path.with_suffix("").name
    convert = python_command(
        f"import torch; model = torch.load({str(path)!r}, weights_only=False); "
        f"model.save_pretrained({target!r})"
    )
    return UnreadableFile(
        f"{path} is a pickle with Python objects in it ({what}), not plain weights: opening it would "
        "run code of whoever made it, so it was not opened.",
        f"If you trust them, convert it once, where its code is installed: `{convert}`; "
        "for a model that is none of transformers' write "
        f"`torch.save(model.state_dict(), {target + '.bin'!r})` last.",
    )


def _damaged(path: Path, error: Exception) -> UnreadableFile:
    reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
    return UnreadableFile(
        f"{path} is no pickle of weights that PyTorch can read ({reason}; the file has "
        f"{path.stat().st_size:,} bytes).",
        "It is damaged, cut short or of another kind: copy or download it again, or save it as "
        "safetensors.",
    )


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise _no_state_dict(path, f"a {type(content).__name__}")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise _no_state_dict(path, named(others))
    odd = sorted({str(value.dtype) for value in content.values()} - set(map(str, DTYPE_CODES)))
    if odd or any(value.is_sparse or value.is_quantized for value in content.values()):
        raise UnreadableFile(
            f"{path} holds tensors that cannot be merged: {', '.join(odd) or 'sparse or quantised'}.",
            "Save it in float32, float16 or bfloat16 first.",
        )
    return {str(name): value.detach() for name, value in content.items()}


def _no_state_dict(path: Path, what: str) -> UnreadableFile:
    return UnreadableFile(
        f"{path} holds {what} where tensors by their names are needed.",
        "Save the state dict alone: `torch.save(torch.load(PATH, weights_only=True)[KEY], OUT)`.",
    )
