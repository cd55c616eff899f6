"""One pickled state dict: OpenAI's `small.pt`, an old `pytorch_model.bin`, an `adapter_model.bin`.

A pickle may hold code. It is only ever read with PyTorch's `weights_only=True`, which accepts tensors
and plain containers alone, so that nothing in a file is executed.
"""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from lorsmerge_cli.checkpoint.openai_names import from_openai, is_openai
from lorsmerge_cli.checkpoint.pickle_scan import ZIP, CodeInside, Unbacked, scan
from lorsmerge_cli.checkpoint.safetensors_file import (
    DTYPE_CODES,
    TensorSpec,
    check_readable,
    check_utf8,
    no_weights,
)
from lorsmerge_cli.errors import UnreadableFile, named
from lorsmerge_cli.inputs import FileIdentity
from lorsmerge_cli.quoting import python_command

OPENAI_STATE = "model_state_dict"  # beside `dims` in what OpenAI publishes
RELAID = 2  # copies kept in row-major order: of the tensor that threads read, and of the next one


class PickledFile:
    """A state dict open for reading; its tensors are mapped, and stay on disk until `read`.

    Attributes:
        path: the file.
        specs: name -> shape and dtype; OpenAI's names are translated to Hugging Face's.
        dims: OpenAI's description of its model (`n_audio_head`, ...), empty in another file.
        metadata: empty, as pickles have none.

    Raises:
        UnreadableFile: it is damaged, or holds other objects than named tensors; nothing was executed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        start = check_readable(path)
        self.identity = FileIdentity.of(path)
        content = _load(path, start)
        self.dims: dict[str, int] = {}
        if isinstance(content, Mapping) and OPENAI_STATE in content:
            dims = content.get("dims")
            if isinstance(dims, Mapping):
                self.dims = {key: size for key, size in dims.items() if type(size) is int}
            content = content[OPENAI_STATE]
        self._tensors = _tensors(path, content)
        self._relaid: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = Lock()
        self.specs = {
            name: TensorSpec(tuple(value.shape), value.dtype)
            for name, value in self._tensors.items()
        }

    def read(self, name: str) -> Tensor:
        """Return a tensor in row-major order: mapped from the file if stored like that, else a copy."""
        tensor = self._tensors[name]
        if tensor.is_contiguous():
            return tensor
        with self._lock:  # a large tensor is read once per block
            if name not in self._relaid:
                self._relaid[name] = tensor.contiguous()
                if len(self._relaid) > RELAID:
                    self._relaid.popitem(last=False)
            return self._relaid[name]


def _load(path: Path, start: bytes) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):
            scan(path)
            # only zip files, the format since PyTorch 1.6, can be mapped
            mapped = start.startswith(ZIP)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except CodeInside as error:
        raise _code_inside(path, str(error)) from None
    except Unbacked as error:
        raise UnreadableFile(
            f"{path}: {error}.",
            "Save it again with a copy of each tensor: "
            "`{name: value.clone(memory_format=torch.contiguous_format) for name, value in ...}`.",
        ) from None
    except Exception as error:  # PyTorch raises all sorts for a damaged or hostile file
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
        "run its author's code, so it was not opened.",
        f"If you trust the author, convert it once, where its code is installed: `{convert}`; "
        "for a model that is not transformers' end with "
        f"`torch.save(model.state_dict(), {target + '.bin'!r})`.",
    )


def _damaged(path: Path, error: Exception) -> UnreadableFile:
    first = (str(error) or type(error).__name__).splitlines()[0]
    reason = first.split(". ")[0].rstrip(".")
    return UnreadableFile(
        f"{path} is not a pickle of weights that PyTorch can read ({reason}; the file has "
        f"{path.stat().st_size:,} bytes).",
        "It is damaged, cut short or of another format: copy or download it again, or save it as "
        "safetensors.",
    )


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise _no_state_dict(path, f"a {type(content).__name__}")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise _no_state_dict(path, named(others))
    tensors = {str(name): value.detach() for name, value in content.items()}
    odd = {name: str(t.dtype) for name, t in tensors.items() if t.dtype not in DTYPE_CODES}
    if odd:
        raise no_weights(path, odd)
    if any(value.is_sparse or value.is_quantized for value in tensors.values()):
        raise UnreadableFile(
            f"{path} holds tensors that cannot be merged: sparse or quantised.",
            "Save it in float32, float16 or bfloat16 first.",
        )
    renamed = is_openai(tensors)
    found = {from_openai(name) if renamed else name: value for name, value in tensors.items()}
    try:
        check_utf8(*found)
    except ValueError as error:
        raise _damaged(path, error) from None
    if len(found) < len(content):
        raise _no_state_dict(path, "two tensors of one name")
    return found


def _no_state_dict(path: Path, what: str) -> UnreadableFile:
    return UnreadableFile(
        f"{path} holds {what} instead of named tensors.",
        "Save the state dict alone: `torch.save(torch.load(PATH, weights_only=True)[KEY], OUT)`.",
    )
