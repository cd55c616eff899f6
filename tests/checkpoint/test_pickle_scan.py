"""What a pickle asks for is known before PyTorch sees it, and more than its bytes back is refused."""

from __future__ import annotations

import os
import pickle
import random
import shlex
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorsmerge_cli.checkpoint.pickle_scan import MAGIC, CodeInside, scan
from lorsmerge_cli.checkpoint.pickled_file import PickledFile, python_command
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.errors import UnreadableFile

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
HUGE = 10**11  # bytes
G, S = b"c", b"."  # GLOBAL and STOP


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes(10, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def called(name: str, *arguments: bytes) -> bytes:
    module, _, function = name.rpartition(".")
    return G + f"{module}\n{function}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def storage(count: int, key: str = "0", kind: str = "FloatStorage", tail: bytes = b"") -> bytes:
    parts = text("storage"), G + f"torch\n{kind}\n".encode(), text(key), text("cpu"), number(count)
    return b"(" + b"".join(parts) + tail + b"tQ"


def tensor(data: bytes, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    def sizes(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    hooks = called("collections.OrderedDict")
    arguments = data, number(offset), sizes(shape), sizes(strides), b"\x89", hooks
    return called("torch._utils._rebuild_tensor_v2", *arguments)


def table(**values: bytes) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in values.items()) + b"u"


def write_zip(path: Path, content: bytes, data: bytes = b"\0" * 16, **more: object) -> Path:
    """What torch.save writes, around a pickle made by hand."""
    with zipfile.ZipFile(path, "w", more.get("compression", zipfile.ZIP_STORED)) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + content + S)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", data)
        archive.writestr("archive/version", "3\n")
    return path


def write_stream(path: Path, content: bytes, data: bytes = b"\0" * 16) -> Path:
    """The same as PyTorch before 1.6."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    head = b"".join(pickle.dumps(value, protocol=2) for value in (MAGIC, 1001, system))
    keys = pickle.dumps(["0"], protocol=2)
    tail = struct.pack("<q", len(data) // 4) + data
    path.write_bytes(head + b"\x80\x02" + content + S + keys + tail)
    return path


WRITERS = pytest.mark.parametrize("write", [write_zip, write_stream], ids=["zip", "stream"])
NONE = b"N"


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has to be refused must not come as far as PyTorch."""
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("PyTorch was asked"))


def tail_of(write: Callable[..., Path]) -> bytes:
    return NONE if write is write_stream else b""


@WRITERS
def test_the_pickles_made_here_by_hand_are_what_torch_reads(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    content = table(a=tensor(storage(4, tail=tail_of(write)), (2, 2), (2, 1)))
    data = struct.pack("<4f", 1, 2, 3, 4)
    path = write(tmp_path / "x.pt", content, data)
    assert torch.equal(PickledFile(path).read("a"), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


def hostile(tail: bytes) -> dict[str, tuple[bytes, str]]:
    four = storage(4, tail=tail)
    return {
        "one element, seen in all": (table(w=tensor(four, (200_000, 200_000), (0, 0))), "'w'"),
        "one row, seen in all": (table(w=tensor(four, (3, 4), (0, 1))), "'w'"),
        "in a table": (table(model=table(w=tensor(four, (9, 9), (0, 0)))), "'w'"),
        "in a list": (b"](" + tensor(four, (9, 9), (0, 0)) + b"e", "a tensor"),
        "past its storage": (table(w=tensor(four, (4,), (1,), offset=1)), "'w'"),
        "past its storage by strides": (table(w=tensor(four, (2, 2), (3, 1))), "'w'"),
        "a negative size": (table(w=tensor(four, (-4,), (1,))), "below zero"),
        "a negative stride": (table(w=tensor(four, (2,), (-1,))), "below zero"),
        "a negative offset": (table(w=tensor(four, (2,), (1,), offset=-1)), "unknown form"),
        "a size past 64 bits": (table(w=tensor(four, (2**64, 0), (1, 1))), "below zero"),
        "100 dimensions": (table(w=tensor(four, (1,) * 100, (1,) * 100)), "unknown form"),
        "a huge storage": (table(w=tensor(storage(HUGE, tail=tail), (1,), (1,))), "storage of 400"),
        "a negative storage": (table(w=tensor(storage(-1, tail=tail), (1,), (1,))), "unknown form"),
        "an unknown storage": (table(w=storage(1, kind="Q7Storage", tail=tail)), "unknown form"),
        "zeros by the number": (table(w=called("builtins.bytearray", number(HUGE))), "bytearray"),
        "a tensor by its size": (table(w=called("torch.FloatTensor", number(HUGE))), "FloatTensor"),
        "a quantised tensor": (
            table(w=called("torch._utils._rebuild_qtensor", four, number(0))), "quantised"
        ),
        "a function of PyTorch": (table(w=called("torch.hub.load", text("x"))), "torch.hub.load"),
        "a function": (table(w=called("os.system", text("true"))), "os.system"),
        "a class by its name": (table(w=G + b"os\nsystem\n"), "os.system"),
        "attributes of a tensor": (table(w=tensor(four, (4,), (1,)) + b"}b"), "attributes"),
        "a tuple of tuples for a name": (b"}" + b")" + b"\x85" * 10**6 + NONE + b"s", "other keys"),
        "a pair without its half": (b"}(" + text("a") + b"u", "zip"),
        "nothing on the stack": (b"s", "fit together"),
        "a mark that is not there": (b"t", "fit together"),
        "a memo that is not there": (b"h\x07", "fit together"),
        "a list that is copied": (
            b"]q\x01(" + (text("k") + b"N\x86") * 500 + b"e("
            + b"ccollections\nOrderedDict\n(h\x01tR" * 900 + b"t",
            "again and again",
        ),
        "another operation": (b"\x80\x04\x95" + bytes(8) + NONE, "FRAME"),
    }  # fmt: skip


@WRITERS
@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("name", hostile(b""))
def test_what_no_bytes_back_and_what_is_no_tensor(
    tmp_path: Path, write: Callable[..., Path], name: str
) -> None:
    content, word = hostile(tail_of(write))[name]
    path = write(tmp_path / "x.pt", content)
    with pytest.raises(UnreadableFile) as caught:
        Checkpoint(path)
    assert str(path) in str(caught.value)
    assert word in str(caught.value)
    assert caught.value.remedy
    assert len(str(caught.value)) < 1000


@FORMATS
@pytest.mark.usefixtures("no_torch")
def test_an_expanded_tensor_as_torch_saves_it(tmp_path: Path, zipped: bool) -> None:
    state = {"a": torch.ones(3), "w": torch.zeros(1).expand(200_000, 200_000)}
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnreadableFile, match=r"'w' of shape \[200000, 200000\].*160,000,000,000"):
        Checkpoint(tmp_path / "x.pt")


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_one(tmp_path: Path, method: int) -> None:
    path = write_zip(tmp_path / "x.pt", table() + b" " * 10**6, compression=method)
    with pytest.raises(UnreadableFile, match="compressed"):
        Checkpoint(path)


@pytest.mark.usefixtures("no_torch")
def test_parts_that_lie_on_one_another(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.pt", table(), data=bytes(1000))
    raw = bytearray(path.read_bytes())
    records = [at for at in range(len(raw)) if raw[at : at + 4] == b"PK\x01\x02"]
    for at in records:  # each member is said to be as large as half of the file
        raw[at + 20 : at + 28] = struct.pack("<II", *[len(raw) // 2] * 2)
    path.write_bytes(raw)
    with pytest.raises(UnreadableFile, match="larger than the file"):
        Checkpoint(path)


@pytest.mark.usefixtures("no_torch")
def test_two_pickles(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.pt", table())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", b"\x80\x02}.")
    with pytest.raises(UnreadableFile, match=r"2 data\.pkl"):
        Checkpoint(path)


@pytest.mark.usefixtures("no_torch")
def test_storages_that_are_too_large_together(tmp_path: Path) -> None:
    parts = {f"t{i}": tensor(storage(999, key=str(i), tail=NONE), (999,), (1,)) for i in range(100)}
    path = write_stream(tmp_path / "x.pt", table(**parts), bytes(160))
    with pytest.raises(UnreadableFile, match="is said to be in"):
        Checkpoint(path)


def everything() -> OrderedDict[str, object]:
    shared = torch.arange(24.0)
    state: OrderedDict[str, object] = OrderedDict(
        whole=shared,
        part=shared[4:16].view(3, 4),
        transposed=shared.view(4, 6).T,
        parameter=torch.nn.Parameter(torch.ones(2, 3)),
        scalar=torch.tensor(3.0),
        empty=torch.zeros(0, 7),
        flags=torch.tensor([True, False]),
        one_row=torch.arange(5).expand(1, 5),
    )
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.complex64):
        state[str(dtype)] = torch.ones(3).to(dtype)
    state["with attributes"] = torch.nn.Parameter(torch.ones(2))
    state["with attributes"].note = "x"
    state._metadata = OrderedDict(version=1)  # as nn.Module.state_dict has
    return state


@FORMATS
def test_it_reads_all_that_torch_saves(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.pt"
    state = everything()
    if zipped:  # which has no place in the old format
        state["unsigned"] = torch.ones(3).to(torch.uint16)
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    wanted = torch.load(path, weights_only=True)
    file = PickledFile(path)
    assert file.specs.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(file.read(name), value)
        assert file.read(name).is_contiguous()


def test_what_is_laid_out_by_columns_is_copied_once(tmp_path: Path) -> None:
    state = {name: torch.randn(7, 5).T for name in "abcd"}
    torch.save(state, tmp_path / "x.pt")
    file = PickledFile(tmp_path / "x.pt")
    for name in "abcd":
        first = file.read(name)
        assert torch.equal(first, state[name])
        assert file.read(name) is first
    assert len(file._relaid) == 2  # a whole model is never held
    assert file.read("a") is not file.read("d")


@FORMATS
@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
def test_flipped_bytes_end_in_words(tmp_path: Path, zipped: bool) -> None:
    """Damaged files: each is refused by the scan, or walked through to the end."""
    path = tmp_path / "x.pt"
    torch.save({"a": torch.ones(2, 3), "b": torch.arange(3)}, path,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    good = path.read_bytes()
    dice = random.Random(0)
    refused = 0
    for _ in range(1_500 if zipped else 500):
        raw = bytearray(good)
        for _ in range(dice.randint(1, 4)):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
        path.write_bytes(raw)
        try:
            scan(path)
        except (CodeInside, ValueError, zipfile.BadZipFile, EOFError, OSError, RecursionError):
            refused += 1
    assert refused > 100


CODES = {
    "plain": ("print('a b')", "python -c \"print('a b')\""),
    "a quote": ('print("it\'s")', "python -c 'print(\"it'\"'\"'s\")'"),
    "a variable": ("print('$HOME')", "python -c 'print('\"'\"'$HOME'\"'\"')'"),
}


@pytest.mark.parametrize(("code", "wanted"), CODES.values(), ids=CODES)
def test_code_in_a_shell_command(code: str, wanted: str) -> None:
    assert python_command(code) == wanted


def test_a_file_name_is_data_in_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "x', weights_only=False); __import__('os').system('touch owned'); print('.pt"
    write_zip(Path("plain.pt"), table(w=called("os.system", text("true"))))
    os.rename("plain.pt", name)
    with pytest.raises(UnreadableFile) as caught:
        Checkpoint(Path(name))
    command = caught.value.remedy.split("`")[1]
    asked: list[str] = []
    code = shlex.split(command)[2]
    fake = type("Torch", (), {"load": staticmethod(lambda path, **_: asked.append(path) or fake()),
                              "save_pretrained": lambda self, target: asked.append(target)})  # fmt: skip
    exec(code.removeprefix("import torch; "), {"torch": fake})  # as the shell would run it
    assert asked == [name, name.removesuffix(".pt")]
    assert not Path("owned").exists()
