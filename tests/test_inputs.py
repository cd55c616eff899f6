"""Files of any origin: only regular ones are read."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from lorsmerge_cli import inputs
from lorsmerge_cli.errors import UnreadableFile
from lorsmerge_cli.inputs import (
    json_object,
    open_regular,
    parse_json,
    parse_toml,
    read_json,
    read_toml,
)


def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableFile, match="is a FIFO"):
        open_regular(tmp_path / "pipe")


def test_a_device_is_refused() -> None:
    with pytest.raises(UnreadableFile, match="is a device"):
        read_json(Path("/dev/zero"))


def test_a_socket_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        with pytest.raises(OSError, match="No such device"):
            open_regular(Path("s"))


def test_a_folder_is_told_as_open_tells_it(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000])
def test_deep_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(text)


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "{b=" * 100_000])
def test_deep_toml_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"nested too deeply|recursion"):
        parse_toml(text)


def test_a_document_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "MAX_DOCUMENT", 10)
    (tmp_path / "a.json").write_text('"' + "x" * 20 + '"')
    with pytest.raises(UnreadableFile, match="larger"):
        read_json(tmp_path / "a.json")


def test_documents_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1]}')
    (tmp_path / "a.toml").write_text("a = [1]")
    assert read_json(tmp_path / "a.json") == read_toml(tmp_path / "a.toml") == {"a": [1]}


@pytest.mark.parametrize("number", ["9223372036854775807", "-0x0", "-9223372036854775808"])
def test_integers_of_64_bits_are_toml(number: str) -> None:
    assert parse_toml(f"a = {number.replace('-0x', '0x')}")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("a = 9223372036854775808", "a"),
        ("[a]\nb = [1, -9223372036854775809]", "a.b"),
        ("[[a]]\nb = {c = 1" + "0" * 400 + "}", "a.b.c"),
        ("a = 0x" + "f" * 5000, "a"),  # which Python writes in no decimal digits
    ],
)
def test_larger_integers_are_not(text: str, key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key} is an integer of more than 64 bits$"):
        parse_toml(text)


@pytest.mark.parametrize("text", ["[]", "1", "null", '"a"'])
def test_an_object_is_asked_for(text: str) -> None:
    with pytest.raises(ValueError, match="an object is needed"):
        json_object(text)
