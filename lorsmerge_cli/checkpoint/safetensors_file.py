"""One safetensors file: checked before it is used, read lazily, written in any order.

The format: 8 bytes with the header's length (little-endian), a JSON header that gives each
tensor's dtype, shape and byte range, then the bytes. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorsmerge_cli.errors import UnreadableFile, UsageFault
from lorsmerge_cli.inputs import FileIdentity
from lorsmerge_cli.outputs import sync_descriptor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}

PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
HEADER_ALIGNMENT = 8  # bytes, so that the first tensor is aligned for every dtype


@dataclass(frozen=True)
class TensorSpec:
    """What a header says of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def is_float(self) -> bool:
        return self.dtype.is_floating_point


class SafetensorsFile:
    """A safetensors file open for reading; its tensors stay on disk until `read`.

    Raises:
        UnreadableFile: the path is no file, or what it holds is not sound safetensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        refuse_other_formats(path)
        self.identity = FileIdentity.of(path)
        try:
            self._handle = safe_open(path, framework="pt")
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(path, error) from error
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        unknown = {entry["dtype"] for entry in header.values()} - DTYPES.keys()
        if unknown:
            raise UnreadableFile(
                f"{path} holds tensors of dtype {', '.join(sorted(unknown))}, which cannot be merged.",
                "Save it in float32, float16 or bfloat16 first.",
            )
        self.specs = {
            name: TensorSpec(tuple(entry["shape"]), DTYPES[entry["dtype"]])
            for name, entry in header.items()
        }

    def read(self, name: str) -> Tensor:
        """The tensor as stored, backed by the mapped file: no memory of its own until written to."""
        tensor: Tensor = self._handle.get_tensor(name)
        return tensor


def is_pickle(path: Path) -> bool:
    """Whether a file begins as PyTorch's .bin and .pt do."""
    with path.open("rb") as file:
        start = file.read(9)
    # a header of 640 bytes begins as a pickle does, and goes on with a brace
    return start.startswith(PICKLES) and start[8:9] != b"{"


def check_readable(path: Path) -> None:
    """Tell what stands in place of a file.

    Raises:
        UnreadableFile: no such file, a folder, unreadable, empty, or a Git LFS pointer.
    """
    if path.is_dir():
        raise UnreadableFile(
            f"{path} is a folder where one file is needed.",
            "Give a .safetensors or .delta file; `lorsmerge delta` makes one of a model folder.",
        )
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError:
        raise UnreadableFile(f"{path}: no such file or folder.", "Check the path.") from None
    except OSError as error:
        raise UnreadableFile(f"{path} cannot be read: {error.strerror}.") from error
    if not start:
        raise UnreadableFile(f"{path} is empty (0 bytes).", "Copy or download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise UnreadableFile(
            f"{path} is a Git LFS pointer, not the weights.",
            "Run `git lfs pull` in its repository.",
        )


def refuse_other_formats(path: Path) -> None:
    """Tell what a file is when it is not safetensors, by its first bytes.

    Raises:
        UnreadableFile: as `check_readable`, or a pickle.
    """
    check_readable(path)
    if is_pickle(path):
        raise UnreadableFile(
            f"{path} is a pickle (PyTorch's .bin or .pt), and a safetensors file is needed.",
            "Of a fine-tune saved so `lorsmerge delta BASE FINETUNED -o x.delta` makes a delta.",
        )


def _damaged(path: Path, error: Exception) -> UnreadableFile:
    reason = str(error).removeprefix("Error while deserializing header: ").strip()
    size = path.stat().st_size if path.exists() else 0
    return UnreadableFile(
        f"{path} is not a sound safetensors file ({reason}; the file has {size:,} bytes).",
        "It is damaged, cut short or of another format: copy, download or save it again.",
    )


class SafetensorsWriter:
    """A safetensors file under construction: tensors arrive in any order, in parts, from any thread.

    Args:
        path: where to write; the caller renames it into place when the `with` block has ended well.
        specs: every tensor of the file. Wider dtypes are laid out first, so that all stay aligned.
        metadata_size: bytes kept free for the metadata that `finish` is given.
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec], metadata_size: int) -> None:
        self._entries: dict[str, dict[str, object]] = {}
        self._starts: dict[str, int] = {}
        self._specs = dict(specs)
        position = 0
        for name in sorted(specs, key=lambda name: -specs[name].dtype.itemsize):
            spec = specs[name]
            self._starts[name] = position
            self._entries[name] = {
                "dtype": DTYPE_CODES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [position, position + spec.nbytes],
            }
            position += spec.nbytes
        header_size = len(_compact_json(self._entries)) + metadata_size
        self._header_size = header_size + -header_size % HEADER_ALIGNMENT
        self._path = path
        self._size = 8 + self._header_size + position
        self._unwritten = position  # bytes
        self._descriptor: int | None = None
        self._created = False
        self._lock = threading.Lock()

    def write(self, name: str, values: Tensor, start: int = 0) -> None:
        """Put `values` (CPU, the tensor's dtype) at the tensor's entries from `start` on, row-major."""
        spec = self._specs[name]
        if values.dtype != spec.dtype or start + values.numel() > spec.numel:
            raise ValueError(f"{name}: {values.dtype} x {values.numel()} at {start} into {spec}")
        if not values.numel():
            return
        raw = values.contiguous().reshape(-1).view(torch.uint8).numpy().data
        offset = 8 + self._header_size + self._starts[name] + start * spec.dtype.itemsize
        self._pwrite(self._open(), raw, offset)
        with self._lock:
            self._unwritten -= raw.nbytes
            if self._unwritten <= 0:
                self._close()  # of a hundred shards one or two are open at a time

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the header, sync the file and close it; another `finish` would write it anew."""
        header = _compact_json({"__metadata__": dict(metadata)} | self._entries)
        if len(header) > self._header_size:
            raise ValueError(f"metadata needs {len(header) - self._header_size} bytes more")
        padded = header.ljust(self._header_size, b" ")
        descriptor = self._open()
        self._pwrite(descriptor, memoryview(len(padded).to_bytes(8, "little") + padded), 0)
        os.ftruncate(descriptor, self._size)
        sync_descriptor(descriptor)
        self._close()

    def _open(self) -> int:
        with self._lock:
            if self._descriptor is None:
                mode = os.O_RDWR if self._created else os.O_RDWR | os.O_CREAT | os.O_EXCL
                self._descriptor = os.open(self._path, mode, 0o666)
                self._created = True
            return self._descriptor

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _pwrite(self, descriptor: int, raw: memoryview, offset: int) -> None:
        while raw:
            written = os.pwrite(descriptor, raw, offset)
            raw, offset = raw[written:], offset + written

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()


def metadata_size(metadata: Mapping[str, str]) -> int:
    """Bytes that the metadata takes in a header."""
    return len(_compact_json({"__metadata__": dict(metadata)}))


def _compact_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32, as in a model's config."""
    return str(dtype).removeprefix("torch.")


FLOAT_NAMES = {dtype_name(dtype): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}


def parse_dtype(name: str) -> torch.dtype:
    """The float dtype of that name.

    Raises:
        UsageFault: the name is not float32, float16 or bfloat16.
    """
    if name not in FLOAT_NAMES:
        raise UsageFault(f"dtype {name!r} is not one of {', '.join(FLOAT_NAMES)}.")
    return FLOAT_NAMES[name]
