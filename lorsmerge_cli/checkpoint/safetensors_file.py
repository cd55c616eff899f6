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

import torch
from torch import Tensor

from lorsmerge_cli.errors import UnreadableFile, UsageFault, named
from lorsmerge_cli.inputs import FileIdentity, json_object, open_regular
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
MAX_HEADER = 100_000_000  # bytes: the format's own limit
MAX_DIMENSIONS = 64  # numpy's limit
MAX_ELEMENTS = 2**56  # product of a shape's nonzero sizes, so that byte counts fit 64 bits
SHOWN = 40  # characters of a value in a message


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize

    @property
    def is_float(self) -> bool:
        """Whether the dtype is a floating-point one; only such tensors have deltas."""
        return self.dtype.is_floating_point


class SafetensorsFile:
    """A safetensors file open for reading; its tensors stay on disk until `read`.

    Attributes:
        path: the file.
        size: bytes of the file.
        metadata: the strings of the header's `__metadata__`.
        specs: name -> shape and dtype.

    Raises:
        UnreadableFile: the path is no file, or not a sound safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if is_pickle(path):
            raise UnreadableFile(
                f"{path} is a pickle (PyTorch's .bin or .pt), and a safetensors file is needed.",
                "If it is a fine-tune, `lorsmerge delta BASE FINETUNED -o x.delta` makes a delta of it.",
            )
        self.identity = FileIdentity.of(path)
        try:
            header, start, self.size = _read_header(path)
            self.metadata = _metadata(header.pop("__metadata__", None))
            self.specs, self._spans = _entries(path, header, start, self.size)
            self._bytes = torch.UntypedStorage.from_file(str(path), False, self.size)
        except (OSError, ValueError, RuntimeError) as error:
            size = path.stat().st_size if path.exists() else 0
            raise UnreadableFile(
                f"{path} is not a sound safetensors file ({error}; the file has {size:,} bytes).",
                "It is damaged, cut short or of another format: copy, download or save it again.",
            ) from error

    def read(self, name: str) -> Tensor:
        """Return a tensor as stored, mapped from the file: it takes no memory until written to."""
        spec, (start, stop) = self.specs[name], self._spans[name]
        tensor = torch.empty(0, dtype=spec.dtype)
        if start < stop:
            storage: torch.UntypedStorage = self._bytes[start:stop]
            tensor.set_(storage)
        return tensor.view(spec.shape)


def _read_header(path: Path) -> tuple[dict[str, object], int, int]:
    """Return the parsed header, the offset of the tensors' bytes, and the file's size."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, MAX_HEADER):
            raise ValueError(f"its header is said to have {length:,} bytes")
        text = file.read(length).decode("utf-8")
    try:
        header = json_object(text)
    except ValueError as error:
        raise ValueError(f"its header is no JSON object: {error}") from None
    return header, 8 + length, size


def _metadata(found: object) -> dict[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"its metadata is {shown(found)}")
    for key, value in found.items():
        if not isinstance(value, str):
            raise ValueError(f"its metadata {key!r} is {shown(value)}, not a string")
    check_utf8(*found, *found.values())
    return found


def _entries(
    path: Path, header: Mapping[str, object], start: int, size: int
) -> tuple[dict[str, TensorSpec], dict[str, tuple[int, int]]]:
    """Return every tensor's spec, and its first and last offset in the file; no two may overlap."""
    check_utf8(*header)
    specs: dict[str, TensorSpec] = {}
    spans: dict[str, tuple[int, int]] = {}
    unknown: dict[str, str] = {}
    for name, entry in header.items():
        if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name!r} has no dtype, shape and data_offsets")
        code, offsets = entry["dtype"], entry["data_offsets"]
        if not isinstance(code, str):
            raise ValueError(f"the dtype of {name!r} is {shown(code)}")
        if not isinstance(offsets, list) or [type(value) for value in offsets] != [int, int]:
            raise ValueError(f"the data_offsets of {name!r} are not two integers")
        shape = parse_shape(name, entry["shape"])
        if code not in DTYPES:
            unknown[name] = code
            continue
        specs[name] = spec = TensorSpec(shape, DTYPES[code])
        begin, end = offsets
        if not 0 <= begin <= end <= size - start or end - begin != spec.nbytes:
            raise ValueError(
                f"{name!r} of shape {list(shape)} in {code} has the bytes {begin:,} to {end:,} of "
                f"{size - start:,}"
            )
        spans[name] = (start + begin, start + end)
    if unknown:
        raise no_weights(path, unknown)
    position = start
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != position:
            raise ValueError(f"the bytes before those of {name!r} overlap or belong to no tensor")
        position = end
    if position != size:
        raise ValueError(f"{size - position:,} bytes at its end belong to no tensor")
    return specs, spans


def parse_shape(name: str, value: object) -> tuple[int, ...]:
    """Check a shape parsed from JSON, and return it as a tuple.

    Raises:
        ValueError: it is no list of integers, or too large for any memory.
    """
    if not isinstance(value, list):
        raise ValueError(f"the shape of {name!r} is {shown(value)}")
    for size in value:
        if type(size) is not int or size < 0:
            raise ValueError(f"the shape of {name!r} has the size {shown(size)}")
    if len(value) > MAX_DIMENSIONS or math.prod(filter(None, value)) > MAX_ELEMENTS:
        raise ValueError(f"the shape of {name!r} has too many elements or dimensions")
    return tuple(value)


def shown(value: object) -> str:
    """Shorten a header's value for a message; lists and tables become a word."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a table"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def check_utf8(*texts: str) -> None:
    """Raise ValueError if a text holds a lone surrogate, which UTF-8 cannot encode."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise ValueError("a name or text in it is no Unicode") from None


def no_weights(path: Path, dtypes: Mapping[str, str]) -> UnreadableFile:
    """Return the error for tensors of dtypes that cannot be added.

    Args:
        path: the file.
        dtypes: tensor name -> its dtype as the file spells it.
    """
    codes = sorted({code.removeprefix("torch.") for code in dtypes.values()})
    if any(code.lower().startswith(("f8", "f4", "f6", "float8", "float4")) for code in codes):
        return quantised(path, f"{named(sorted(dtypes))} in {named(codes)}")
    return UnreadableFile(
        f"{path} holds tensors of dtype {named(codes)}, which cannot be merged: "
        f"{named(sorted(dtypes))}.",
        "Save them in float32, float16 or bfloat16 first.",
    )


def quantised(path: Path, sign: str) -> UnreadableFile:
    """Return the error for a quantised model; `sign` is the evidence."""
    return UnreadableFile(
        f"{path} is quantised ({sign}): its weights are codes, which have no difference and no sum.",
        "Take the model it was made from or, with transformers, `model.dequantize()`, and save it "
        "in float32 or bfloat16 first.",
    )


def is_pickle(path: Path) -> bool:
    """Tell whether a file begins like PyTorch's .bin and .pt files.

    Raises:
        UnreadableFile: as `check_readable`.
    """
    start = check_readable(path)
    # a safetensors header of 640 bytes begins like a pickle too, but a brace follows its length
    return start.startswith(PICKLES) and start[8:9] != b"{"


def check_readable(path: Path) -> bytes:
    """Read the first 64 bytes of a file.

    Raises:
        UnreadableFile: the file is missing, unreadable or empty, or it is a folder, a FIFO or a
            Git LFS pointer.
    """
    try:
        with open_regular(path) as file:
            start = file.read(64)
    except IsADirectoryError:
        raise UnreadableFile(
            f"{path} is a folder where one file is needed.",
            "Give a .safetensors or .delta file; `lorsmerge delta` makes one of a model folder.",
        ) from None
    except (FileNotFoundError, NotADirectoryError):
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
    return start


class SafetensorsWriter:
    """A safetensors file being written: tensors arrive in any order, in parts, from any thread.

    Args:
        path: where to write; the caller renames the file once the `with` block has succeeded.
        specs: every tensor of the file. Wider dtypes are laid out first, so that all stay aligned.
        metadata_size: bytes reserved for the metadata passed to `finish`.
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
        """Write `values` (CPU, the tensor's dtype) from element `start` on, in row-major order."""
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
                self._close()  # keeps one or two of a hundred shards open at a time

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the header, sync the file and close it; a second call rewrites the header."""
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

    def __exit__(self, *_error: object) -> None:
        self._close()


def metadata_size(metadata: Mapping[str, str]) -> int:
    """Return the bytes that metadata takes in a header."""
    return len(_compact_json({"__metadata__": dict(metadata)}))


def _compact_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def dtype_name(dtype: torch.dtype) -> str:
    """Return `float32` for torch.float32, as in a model's config."""
    return str(dtype).removeprefix("torch.")


FLOAT_NAMES = {dtype_name(dtype): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}


def parse_dtype(name: str) -> torch.dtype:
    """Return the float dtype with a name.

    Raises:
        UsageFault: the name is not float32, float16 or bfloat16.
    """
    if name not in FLOAT_NAMES:
        raise UsageFault(f"dtype {name!r} is not one of {', '.join(FLOAT_NAMES)}.")
    return FLOAT_NAMES[name]
