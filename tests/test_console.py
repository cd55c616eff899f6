"""Terminal output: one line for one message, no secrets, no control characters."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hostile import NAMES, STEERS

from lorsmerge_cli import console
from lorsmerge_cli.errors import Faults, UnreadableFile

TOKEN = "hf_" + "sEcReT" * 5
EVERY_NAME = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_hidden", set())
    for name in (*console.TOKENS, *console.PROXIES, *map(str.upper, console.PROXIES)):
        monkeypatch.delenv(name, raising=False)
    console.configure(quiet=False, as_json=False, debug=False)


@EVERY_NAME
@pytest.mark.parametrize("say", [console.note, console.warning, console.error, console.line])
def test_a_message_is_one_line(capsys: pytest.CaptureFixture[str], say: object, name: str) -> None:
    say(f"{name}: a message")  # type: ignore[operator]
    printed = "".join(capsys.readouterr())
    assert not STEERS.search(printed)
    assert len(printed.splitlines()) == 1


@EVERY_NAME
def test_a_fault_among_several_is_one_line(capsys: pytest.CaptureFixture[str], name: str) -> None:
    faults = Faults([UnreadableFile(f"{name}: no.", name), UnreadableFile("b: no.")])
    console.error(*faults.lines)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: 2 problems were found:"
    assert [line[:5] for line in lines[1:]] == ["  1. ", "  2. "]


@EVERY_NAME
def test_a_table_is_rows(capsys: pytest.CaptureFixture[str], name: str) -> None:
    console.table([name, "b"], [[name, "1"], ["c", name]], title=name)
    printed = capsys.readouterr().out
    console.table(["a", "b"], [["a", "1"], ["c", "d"]], title="t")
    assert not STEERS.search(printed)
    assert len(printed.splitlines()) == len(capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("text", ["[red]a[/red]", "[/x]", "[link=https://e]a[/link]", ":smile:"])
def test_no_markup_is_read(capsys: pytest.CaptureFixture[str], text: str) -> None:
    console.line(text)
    console.note(text)
    console.table([text], [[text]], title=text)
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count(text) == 5


@EVERY_NAME
def test_json_has_the_value(capsys: pytest.CaptureFixture[str], name: str) -> None:
    console.configure(quiet=False, as_json=True, debug=False)
    console.result({"name": name, name: [name]}, lambda: None)
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"name": name, name: [name]}
    assert not STEERS.search(printed)


def test_a_block_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console.block("a\n\nb\x1b\n")
    console.line("\nc\n")
    console.line("")
    assert capsys.readouterr().out == "a\n\nb\\x1b\n\n\nc\n\n\n"


# secrets


def said(capsys: pytest.CaptureFixture[str], text: str) -> str:
    """Return what all functions of the console print of a text."""
    for say in (console.note, console.warning, console.error, console.line, console.block):
        say(text)
    console.table([text], [[text]])
    try:
        raise ValueError(text)
    except ValueError:
        console.traceback()
    console.configure(quiet=False, as_json=True, debug=False)
    console.result({"text": text}, lambda: None)
    return "".join(capsys.readouterr())


@pytest.mark.parametrize("name", console.TOKENS)
def test_a_token_of_the_environment_is_not_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, f" {TOKEN}\n")
    printed = said(capsys, f"Illegal header value b'Bearer {TOKEN}'")
    assert TOKEN not in printed
    assert "Illegal header value b'Bearer ***'" in printed


@pytest.mark.parametrize(
    "token", ["short-but-secret", "first-part\nsecond-part", "ümlaut-of-a-token", "with\x1bescape-in-it", 'q"uoted\\it']
)  # fmt: skip
def test_a_token_of_the_command_line_is_not_printed(
    capsys: pytest.CaptureFixture[str], token: str
) -> None:
    console.hide(token)
    for form in (token, repr(token), json.dumps(token), ascii(token)):
        printed = said(capsys, f"value {form} is wrong")
        assert not any(part in printed for part in (token, form, *token.split("\n")))


def test_a_stored_token_is_not_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "stored_tokens"))
    (tmp_path / "token").write_text("api_org_stored\n")
    (tmp_path / "stored_tokens").write_text("[work]\nhf_token = another-stored-token\n")
    printed = said(capsys, "api_org_stored and another-stored-token of [work] by hf_token")
    assert "stored" not in printed.replace("stored_tokens", "")
    assert "*** and *** of [work] by hf_token" in printed
    (tmp_path / "token").unlink()
    os.mkfifo(tmp_path / "token")
    assert "hello" in said(capsys, "hello")


def test_what_looks_like_a_token_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    printed = said(capsys, f"{TOKEN}, hf_transfer and hf_hub_download")
    assert TOKEN not in printed
    assert "hf_transfer and hf_hub_download" in printed


@pytest.mark.parametrize(
    ("text", "kept"),
    [("http://anna:pass@proxy:80/x", "http://***@proxy:80/x"),
     ("https://anna:p%40ss@hub.example/api", "https://***@hub.example/api"),
     ("socks5://anna@proxy refused", "socks5://***@proxy refused"),
     ("postgresql://anna:a@b:c@db/x", "postgresql://***@db/x")],
)  # fmt: skip
def test_a_url_has_no_password(capsys: pytest.CaptureFixture[str], text: str, kept: str) -> None:
    printed = said(capsys, f"{text} cannot be reached")
    assert "anna" not in printed
    assert printed.count(kept) >= 8


@pytest.mark.parametrize("text", ["https://huggingface.co/org/x@main", "org/x@main", "a@b.example"])
def test_what_is_no_password_is_printed(capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert said(capsys, text).count(text) >= 8


def test_a_proxys_password_without_a_scheme(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "anna:password@proxy:80")
    assert "password" not in said(capsys, "unknown scheme of 'anna:password@proxy:80'")


def test_a_short_value_blots_out_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "e")
    assert "hello there" in said(capsys, "hello there")
