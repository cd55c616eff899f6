"""A scan of a pickle before PyTorch opens it, for code and for sizes its bytes do not back.

`torch.load(weights_only=True)` runs no code, but trusts every size: a file of 1 kB can claim any amount
of memory, with a compressed zip, a storage or tensor larger than the file, or an array of zeros. The
scan steps through the pickle's operations, keeps only the sizes of tensors, and rejects everything but
dense tensors, strings, numbers and containers that the file's own bytes back.
"""

from __future__ import annotations

import math
import mmap
import os
import pickletools
import struct
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lorsmerge_cli.checkpoint.safetensors_file import MAX_DIMENSIONS
from lorsmerge_cli.inputs import open_regular

ZIP = b"PK\x03\x04"
MAGIC = 0x1950A86A20F9469CFC6C  # at the beginning of a file of PyTorch before 1.6

# Names of other modules than these are code. `_reduce` restricts which of them may be called.
MODULES = {"collections", "torch", "torch._tensor", "torch._utils", "torch.nn.parameter",
           "torch.serialization", "torch.storage"}  # fmt: skip
TENSORS = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
PARAMETERS = {f"torch._utils._rebuild_parameter{state}" for state in ("", "_with_state")}
STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8,
    "Byte": torch.uint8, "Bool": torch.bool, "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64, "Untyped": torch.uint8,
}  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {"BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "LONG1", "SHORT_BINSTRING"}
CONTAINERS = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class CodeInside(Exception):
    """A pickle refers to code; the only argument is its name."""


class Unbacked(ValueError):
    """A tensor has more elements than are stored of it."""


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    nbytes: int
    itemsize: int


@dataclass(frozen=True, eq=False)
class _Tensor:
    shape: tuple[int, ...]
    nbytes: int
    stored: int  # bytes


def scan(path: Path) -> None:
    """Check that opening a pickle takes no more memory than its size, and runs no code.

    Raises:
        CodeInside: it holds other objects than tensors.
        ValueError: it is damaged, or claims sizes that its bytes do not back.
        OSError: as `open` does.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        machine = _Machine(size)
        if file.read(len(ZIP)) == ZIP:
            found = _scan_zip(machine, file)
        else:
            found = _scan_stream(machine, file)
    if machine.unbacked is not None:
        tensor = machine.unbacked
        raise Unbacked(
            f"{_name_of(tensor, found)} of shape {list(tensor.shape)} has {tensor.nbytes:,} bytes, "
            f"and {tensor.stored:,} are stored of it"
        )


def _scan_zip(machine: _Machine, file: BinaryIO) -> object:
    try:
        members = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise ValueError(str(error)) from None
    sizes = {member.filename: member.file_size for member in members}
    packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ValueError(f"{packed[0]!r} in it is compressed, which torch.save never does")
    if len(sizes) < len(members) or sum(sizes.values()) > machine.size:
        raise ValueError("its parts are larger than the file")
    pickles = [member for member in members if member.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"it is a zip file with {len(pickles)} data.pkl")
    folder = pickles[0].filename.removesuffix("data.pkl")
    machine.storages = {name.removeprefix(f"{folder}data/"): size for name, size in sizes.items()}
    # ZipFile.read verifies checksums, which PyTorch can omit
    file.seek(max(0, pickles[0].header_offset) + 26)
    lengths = file.read(4)  # of the two fields before the content: name and extra
    file.seek(int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"), 1)
    return machine.run(BytesIO(file.read(pickles[0].file_size)))


def _scan_stream(machine: _Machine, file: BinaryIO) -> object:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        if machine.run(raw) != MAGIC:
            raise ValueError("it is a pickle, but not one that torch.save wrote")
        _version, _system, found, _keys = (machine.run(raw) for _ in range(4))
        return found


def _name_of(tensor: _Tensor, found: object) -> str:
    tables = [found] if isinstance(found, dict) else []
    tables += [value for table in tables for value in table.values() if isinstance(value, dict)]
    names = (repr(name) for table in tables for name, value in table.items() if value is tensor)
    return next(names, "a tensor")


class _Machine:
    """A pickle's stack and memo, with sizes instead of tensors.

    Attributes:
        size: bytes of the whole file.
        storages: key -> bytes of each storage; None in the old format, which does not list them.
        unbacked: the first tensor with more elements than are stored of it.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.storages: dict[str, int] | None = None
        self.unbacked: _Tensor | None = None
        self.claimed: dict[str, int] = {}  # bytes of each unlisted storage
        self.claimed_total = 0
        self.copied = 0  # elements of lists that became tables

    def run(self, stream: BytesIO | mmap.mmap) -> object:
        """Step through one pickle, and return the object that it describes."""
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}
        try:
            for operation, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]
                self._step(operation.name, argument)
            return self.stack.pop()
        except (IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise ValueError(f"its operations do not fit together: {error!r}") from None

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in CONTAINERS:
            stack.append(CONTAINERS[name]())
        elif name in TUPLES:
            count = TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.below.append(stack)
            self.stack = []
        elif name in ("TUPLE", "SETITEMS", "APPENDS"):
            self.stack = self.below.pop()
            self._fill(name, stack)
        elif name in ("SETITEM", "APPEND"):
            count = 2 if name == "SETITEM" else 1
            items = stack[-count:]
            del stack[-count:]
            self._fill(f"{name}S", items)
        elif name == "GLOBAL":
            stack.append(_global(argument))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(self._reduce(stack.pop().name, arguments))
        elif name == "BUILD":  # an OrderedDict's attributes
            if not isinstance(stack.pop(), dict) or not isinstance(stack[-1], dict):
                raise ValueError("it sets attributes of an object without any")
        elif name not in ("PROTO", "STOP"):
            raise ValueError(f"it uses the operation {name}, which torch.save does not")

    def _fill(self, name: str, items: list[Any]) -> None:
        if name == "TUPLE":
            self.stack.append(tuple(items))
        elif name == "APPENDS":
            if not isinstance(self.stack[-1], list):
                raise ValueError("it appends to something other than a list")
            self.stack[-1].extend(items)
        else:
            self._set_items(self.stack[-1], items[::2], items[1::2])

    def _set_items(self, table: dict[Any, Any], keys: list[Any], values: list[Any]) -> None:
        if not isinstance(table, dict) or not all(isinstance(key, str | int) for key in keys):
            raise ValueError("it has a table with other keys than names")
        table.update(zip(keys, values, strict=True))

    def _reduce(self, name: str, arguments: tuple[Any, ...]) -> object:
        """Evaluate a call; only those that build tensors, sizes and ordered tables are allowed."""
        if name in TENSORS:
            dtype = arguments[6].name if name.endswith("_v3") else ""
            storage, offset, shape, strides = arguments[:4]
            tensor = _tensor(storage, offset, shape, strides, dtype)
            if tensor.nbytes > tensor.stored:
                self.unbacked = self.unbacked or tensor
            return tensor
        if name in PARAMETERS and isinstance(arguments[0], _Tensor):
            return arguments[0]
        if name == "torch._tensor._rebuild_from_type_v2":  # a tensor with attributes
            return self._reduce(arguments[0].name, arguments[2])
        if name == "torch.Size" and len(arguments[0]) <= MAX_DIMENSIONS:
            return arguments[0]
        if name in ("torch.device", "torch.serialization._get_layout"):
            return _Global(name)
        if name == "collections.OrderedDict":
            made: dict[Any, Any] = {}
            pairs = arguments[0] if arguments else []
            self.copied += len(pairs)
            if self.copied > self.size:
                raise ValueError("it copies its tables again and again")
            self._set_items(made, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
            return made
        if name.startswith("torch._utils._rebuild_"):
            raise ValueError(f"it has sparse, quantised or otherwise unsupported tensors ({name})")
        raise CodeInside(name)

    def _storage(self, identity: tuple[Any, ...]) -> _Storage:
        what, kind, key, _location, count, *view = identity
        dtype = STORAGES.get(kind.name.rpartition(".")[2].removesuffix("Storage"))
        if what != "storage" or dtype is None or not _is_size(count) or not isinstance(key, str):
            raise ValueError("it has a storage of an unknown form")
        nbytes = count * dtype.itemsize
        if self.storages is None:
            there = self.size - self.claimed_total + self.claimed.get(key, 0)
            self.claimed_total += nbytes - self.claimed.get(key, 0)
            self.claimed[key] = nbytes
        else:
            there = self.storages.get(key, 0)
        if nbytes > there:
            raise ValueError(f"a storage of {nbytes:,} bytes is said to be in {there:,} bytes")
        if view and view[0] is not None:
            _, offset, count = view[0]
            if not _is_size(offset) or not _is_size(count):
                raise ValueError("it has a storage of an unknown form")
            if (offset + count) * dtype.itemsize > nbytes:
                raise ValueError("a part of a storage lies outside of it")
        return _Storage(count * dtype.itemsize, dtype.itemsize)


def _global(argument: str) -> _Global:
    module, _, name = argument.partition(" ")
    if module not in MODULES:
        raise CodeInside(f"{module}.{name}")
    return _Global(f"{module}.{name}")


def _tensor(storage: _Storage, offset: int, shape: Any, strides: Any, dtype: str) -> _Tensor:
    itemsize = getattr(torch, dtype.removeprefix("torch.")).itemsize if dtype else storage.itemsize
    if not (_is_size(offset) and len(shape) == len(strides) <= MAX_DIMENSIONS):
        raise ValueError("it has a tensor of an unknown form")
    if not all(_is_size(value) for value in (*shape, *strides)):
        raise ValueError("it has a tensor with a size or stride below zero")
    numel = math.prod(shape)
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    needed = max(numel, last + 1) if numel else 0
    return _Tensor(tuple(shape), needed * itemsize, storage.nbytes)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63
