"""Reading what is no sound safetensors file, and writing files that the plain library opens."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorsmerge_cli.checkpoint.safetensors_file import (
    DTYPE_CODES,
    DTYPES,
    SafetensorsFile,
    SafetensorsWriter,
    TensorSpec,
    metadata_size,
    parse_dtype,
)
from lorsmerge_cli.errors import LorsmergeError, UnreadableFile

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 967099\n"


def raw_file(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file by hand: the header may be anything, and lie about its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def sound_file() -> bytes:
    return raw_file({"a": entry("F32", [4], 0, 16)}, b"\0" * 16)


UNSOUND = {
    "empty": b"",
    "three bytes": b"abc",
    "eight zero bytes": b"\0" * 8,
    "data cut short": sound_file()[:-1],
    "data too long": sound_file() + b"\0",
    "cut in the header": sound_file()[:20],
    "random bytes": np.random.default_rng(0).bytes(4096),
    "text": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "git lfs pointer": LFS_POINTER,
    "header of 10 GB": raw_file({"a": entry("F32", [4], 0, 16)}, b"\0" * 16, length=10**10),
    "header of 2^64 - 1 bytes": raw_file({}, length=2**64 - 1),
    "header is no JSON": raw_file(b"{not json}      "),
    "header is no UTF-8": raw_file(b'{"\xff\xfe": 1}'),
    "header is a list": raw_file([1, 2]),
    "header is a number": raw_file(3),
    "entry is a number": raw_file({"a": 3}),
    "entry without offsets": raw_file({"a": {"dtype": "F32", "shape": [4]}}, b"\0" * 16),
    "offsets overlap": raw_file(
        {"a": entry("F32", [4], 0, 16), "b": entry("F32", [4], 8, 24)}, b"\0" * 24
    ),
    "offsets leave a gap": raw_file(
        {"a": entry("F32", [4], 0, 16), "b": entry("F32", [4], 20, 36)}, b"\0" * 36
    ),
    "offsets beyond the file": raw_file({"a": entry("F32", [4], 0, 16)}, b"\0" * 8),
    "offsets that disagree with the shape": raw_file({"a": entry("F32", [5], 0, 16)}, b"\0" * 16),
    "offsets backwards": raw_file({"a": entry("F32", [4], 16, 0)}, b"\0" * 16),
    "unknown dtype": raw_file({"a": entry("F33", [4], 0, 16)}, b"\0" * 16),
    "dtype that cannot be merged": raw_file({"a": entry("F8_E4M3", [4], 0, 4)}, b"\0" * 4),
    "negative shape": raw_file({"a": entry("F32", [-4], 0, 16)}, b"\0" * 16),
    "shape that overflows": raw_file({"a": entry("F32", [2**40, 2**40], 0, 16)}, b"\0" * 16),
    "metadata that is no string": raw_file({"__metadata__": {"a": 1}}),
    "metadata that is a list": raw_file({"__metadata__": ["a"]}),
    "half a surrogate pair in the metadata": raw_file({"__metadata__": {"a": "\ud800"}}),
    "half a surrogate pair in a name": raw_file({"\ud800": entry("F32", [0], 0, 0)}),
    "header in UTF-16": raw_file('{"a": 1}'.encode("utf-16")),
    "header nested deeply": raw_file(b"[" * 100_000),
    "shape nested deeply": raw_file(b'{"a":{"dtype":"F32","data_offsets":[0,0],"shape":' + b"[" * 9**5),
    "dtype is a list": raw_file({"a": {**entry("F32", [4], 0, 16), "dtype": ["F32"]}}, b"\0" * 16),
    "shape is a number": raw_file({"a": {**entry("F32", [4], 0, 16), "shape": 4}}, b"\0" * 16),
    "size is a float": raw_file({"a": entry("F32", [4.0], 0, 16)}, b"\0" * 16),
    "size is a string": raw_file({"a": entry("F32", ["4"], 0, 16)}, b"\0" * 16),
    "size is true": raw_file({"a": entry("F32", [4, True], 0, 16)}, b"\0" * 16),
    "size past any memory": raw_file({"a": entry("F32", [0, 10**30], 0, 0)}),
    "sizes past any memory": raw_file({"a": entry("F32", [0, 2**40, 2**40], 0, 0)}),
    "100 dimensions": raw_file({"a": entry("F32", [1] * 100, 0, 4)}, b"\0" * 4),
    "offsets are floats": raw_file({"a": entry("F32", [4], 0.0, 16.0)}, b"\0" * 16),
    "offsets are three": raw_file({"a": {**entry("F32", [4], 0, 16), "data_offsets": [0, 8, 16]}}, b"\0" * 16),
    "offsets are a string": raw_file({"a": {**entry("F32", [4], 0, 16), "data_offsets": "ab"}}, b"\0" * 16),
    "offsets below zero": raw_file({"a": entry("F32", [4], -16, 0)}, b"\0" * 16),
    "offsets past 64 bits": raw_file({"a": entry("F32", [4], 2**70, 2**70 + 16)}, b"\0" * 16),
    "number of 10,000 digits": raw_file(b'{"a":{"dtype":"F32","data_offsets":[0,0],"shape":[' + b"9" * 10_000 + b"]}}"),
    "one tensor on another": raw_file({"a": entry("F32", [4], 0, 16), "b": entry("F32", [4], 0, 16)}, b"\0" * 16),
    "bytes of no tensor": raw_file({"a": entry("F32", [2], 0, 8)}, b"\0" * 16),
}  # fmt: skip


@pytest.mark.parametrize("content", UNSOUND.values(), ids=UNSOUND)
def test_what_is_unsound_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("legacy", "protocol"), [(False, 2), (True, 2), (True, 4)], ids=["zip", "legacy", "protocol 4"]
)
def test_a_pickle_is_told_by_its_bytes(tmp_path: Path, legacy: bool, protocol: int) -> None:
    path = tmp_path / "model.safetensors"
    torch.save(
        {"a": torch.ones(2)},
        path,
        _use_new_zipfile_serialization=not legacy,
        pickle_protocol=protocol,
    )
    with pytest.raises(UnreadableFile, match="pickle") as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 65536 + 640])
def test_a_header_length_that_begins_like_a_pickle_is_no_pickle(
    tmp_path: Path, length: int
) -> None:
    """640 is 80 02 in little-endian, as a pickle of protocol 2 begins."""
    header = json.dumps({"a": entry("F32", [4], 0, 16)}).encode().ljust(length)
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw_file(header, b"\0" * 16))
    assert list(load_file(path)) == ["a"]
    assert list(SafetensorsFile(path).specs) == ["a"]


@pytest.mark.parametrize(
    ("content", "hint"), [(LFS_POINTER, "git lfs pull"), (b"", "0 bytes")], ids=["lfs", "empty"]
)
def test_the_message_says_what_it_is(tmp_path: Path, content: bytes, hint: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=hint):
        SafetensorsFile(path)


def test_a_fault_names_tensor_and_field(tmp_path: Path) -> None:
    for key, value, words in (
        ("shape", [7.7], "shape of 'layer.weight' has the size 7.7"),
        ("shape", {"a": 1}, "shape of 'layer.weight' is a table"),
        ("dtype", 3, "dtype of 'layer.weight' is 3"),
        ("data_offsets", [True, 8], "data_offsets of 'layer.weight'"),
        ("shape", [3], r"'layer.weight' of shape \[3\] in F32 has the bytes 0 to 8 of 8"),
    ):
        path = tmp_path / "x.safetensors"
        path.write_bytes(
            raw_file({"layer.weight": {**entry("F32", [2], 0, 8), key: value}}, bytes(8))
        )
        with pytest.raises(UnreadableFile, match=words):
            SafetensorsFile(path)


@pytest.mark.parametrize("code", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"])
def test_float8_is_quantised(tmp_path: Path, code: str) -> None:
    (tmp_path / "x").write_bytes(raw_file({"a.weight": entry(code, [4], 0, 4)}, bytes(4)))
    with pytest.raises(UnreadableFile, match=r"quantised \('a\.weight' in .*dequantize"):
        SafetensorsFile(tmp_path / "x")


def test_names_that_differ_by_case_are_two(tmp_path: Path) -> None:
    save_file({"A": torch.ones(2), "a": torch.zeros(2)}, tmp_path / "x")
    assert SafetensorsFile(tmp_path / "x").read("A").sum() == 2


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path, word in ((tmp_path / "fifo", "FIFO"), (Path("/dev/zero"), "device"),
                           (tmp_path / "socket", "socket|cannot be read")):  # fmt: skip
            with pytest.raises(UnreadableFile, match=word):
                SafetensorsFile(path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UnreadableFile, match=r"loop cannot be read|loop: no such file"):
        SafetensorsFile(tmp_path / "loop")


@pytest.mark.parametrize("padding", range(8))
def test_tensors_are_read_as_the_plain_library_reads_them(tmp_path: Path, padding: int) -> None:
    """Of every dtype, wherever the header's length lets them begin."""
    path = tmp_path / "x.safetensors"
    save_file({code: torch.arange(6).to(dtype).reshape(2, 3) for code, dtype in DTYPES.items()}
              | {"none": torch.zeros(0, 3), "one": torch.tensor(5.0)}, path)  # fmt: skip
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    path.write_bytes(raw_file(raw[8 : 8 + size] + b" " * padding, raw[8 + size :]))
    file, wanted = SafetensorsFile(path), load_file(path)
    assert file.specs.keys() == wanted.keys()
    for name, tensor in wanted.items():
        found = file.read(name)
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(found, tensor)


def test_mutated_headers_are_refused_or_read_as_the_plain_library_does(tmp_path: Path) -> None:
    path = tmp_path / "x"
    good = raw_file({"__metadata__": {"format": "pt"}, "a": entry("F32", [2, 2], 0, 16),
                     "b": entry("I64", [1], 16, 24)}, bytes(range(24)))  # fmt: skip
    dice = random.Random(0)
    alphabet = b'0123456789[]{}":,-.eabF326I4 \\u'
    for _ in range(1000):
        raw = bytearray(good)
        for _ in range(dice.randint(1, 3)):
            raw[dice.randrange(8, len(good) - 24)] = dice.choice(alphabet)
        path.write_bytes(raw)
        try:
            ours = SafetensorsFile(path)
        except UnreadableFile:
            continue
        theirs = load_file(path)  # what is taken is sound
        assert {name: (s.shape, s.dtype) for name, s in ours.specs.items()} == {
            name: (tuple(t.shape), t.dtype) for name, t in theirs.items()
        }


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="is a folder") as caught:
        SafetensorsFile(tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(UnreadableFile, match="no such file") as caught:
        SafetensorsFile(tmp_path / "absent.safetensors")
    assert "absent.safetensors" in str(caught.value)


def test_every_single_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    whole = sound_file()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(UnreadableFile):
            SafetensorsFile(path)


def any_tensor(spec: TensorSpec, seed: int = 0) -> torch.Tensor:
    """Every bit pattern is a value: random bytes, bools 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    high = 2 if spec.dtype == torch.bool else 256
    raw = torch.randint(0, high, (spec.nbytes,), generator=generator, dtype=torch.uint8)
    return raw.view(spec.dtype).reshape(spec.shape)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def write_whole(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    with SafetensorsWriter(path, specs, metadata_size(metadata)) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
        writer.finish(metadata)


@pytest.mark.parametrize("code", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5,), (3, 7)], ids=str)
def test_what_is_written_is_read_to_the_last_bit(
    tmp_path: Path, code: str, shape: tuple[int, ...]
) -> None:
    path, metadata = tmp_path / "x.safetensors", {"format": "pt", "text": 'ü"\\ \n'}
    tensor = any_tensor(TensorSpec(shape, DTYPES[code]))
    write_whole(path, {"x": tensor}, metadata)
    for read in (load_file(path)["x"], SafetensorsFile(path).read("x")):
        assert (tuple(read.shape), read.dtype, bits(read)) == (shape, DTYPES[code], bits(tensor))
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == metadata


def mixed_tensors() -> dict[str, torch.Tensor]:
    """One of every dtype, narrow ones first and of odd sizes: misaligned if laid out as given."""
    codes = sorted(DTYPES, key=lambda code: DTYPES[code].itemsize)
    return {
        f"{code}.größe": any_tensor(TensorSpec((3, 2 * i + 1), DTYPES[code]), i)
        for i, code in enumerate(codes)
    } | {"empty": torch.zeros(0, 3), "scalar": torch.tensor(7, dtype=torch.int64)}


def test_tensors_of_mixed_widths_are_aligned_and_equal(tmp_path: Path) -> None:
    path, tensors = tmp_path / "mixed.safetensors", mixed_tensors()
    write_whole(path, tensors, {})
    read = load_file(path)
    assert {name: bits(t) for name, t in read.items()} == {n: bits(t) for n, t in tensors.items()}
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    for name, item in json.loads(raw[8 : 8 + length]).items():
        if name != "__metadata__":
            assert (8 + length + item["data_offsets"][0]) % DTYPES[item["dtype"]].itemsize == 0


def test_parts_in_any_order_make_the_same_file(tmp_path: Path) -> None:
    tensors = mixed_tensors()
    write_whole(tmp_path / "whole", tensors, {"a": "b"})
    specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    parts = [
        (name, start, values)
        for name, t in tensors.items()
        for start, values in zip(
            range(0, t.numel(), 4), t.reshape(-1).split(4) if t.numel() else (), strict=True
        )
    ]
    order = np.random.default_rng(1).permutation(len(parts))
    with SafetensorsWriter(tmp_path / "parts", specs, metadata_size({"a": "b"})) as writer:
        for number in order:
            name, start, values = parts[number]
            writer.write(name, values, start)
        writer.finish({"a": "b"})
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_tensor_with_strides_is_written_in_row_major_order(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).reshape(3, 4).T
    write_whole(tmp_path / "t", {"t": tensor}, {})
    assert torch.equal(load_file(tmp_path / "t")["t"], tensor)


@pytest.mark.parametrize(
    ("values", "start"),
    [(torch.ones(3), 2), (torch.ones(5), 0), (torch.ones(4, dtype=torch.float64), 0)],
    ids=["past the end", "too many", "other dtype"],
)
def test_values_that_do_not_fit_are_refused(
    tmp_path: Path, values: torch.Tensor, start: int
) -> None:
    specs = {"a": TensorSpec((4,), torch.float32)}
    with (
        SafetensorsWriter(tmp_path / "a", specs, 0) as writer,
        pytest.raises(ValueError, match="a"),
    ):
        writer.write("a", values, start)


def test_metadata_beyond_the_space_kept_is_refused(tmp_path: Path) -> None:
    with (
        SafetensorsWriter(tmp_path / "a", {"a": TensorSpec((4,), torch.float32)}, 20) as writer,
        pytest.raises(ValueError, match="more"),
    ):
        writer.finish({"key": "x" * 100})


def test_metadata_shorter_than_the_space_kept_leaves_a_sound_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with SafetensorsWriter(path, {"a": TensorSpec((4,), torch.float32)}, 5000) as writer:
        writer.write("a", torch.arange(4.0))
        writer.finish({"k": "v"})
    assert torch.equal(load_file(path)["a"], torch.arange(4.0))
    assert SafetensorsFile(path).metadata == {"k": "v"}


def test_a_file_that_exists_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with SafetensorsWriter(tmp_path / "a", {"a": TensorSpec((4,), torch.float32)}, 99) as writer:
        with pytest.raises(FileExistsError):
            writer.write("a", torch.ones(4))
        with pytest.raises(FileExistsError):
            writer.finish({})
    assert (tmp_path / "a").read_text() == "mine"


def test_metadata_of_a_plain_file(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "none")
    save_file({"a": torch.ones(2)}, tmp_path / "some", metadata={"format": "pt"})
    assert SafetensorsFile(tmp_path / "none").metadata == {}
    assert SafetensorsFile(tmp_path / "some").metadata == {"format": "pt"}


def test_every_code_has_one_dtype() -> None:
    assert len(DTYPE_CODES) == len(DTYPES)


def test_names_of_dtypes() -> None:
    assert parse_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(LorsmergeError, match="int8"):
        parse_dtype("int8")
