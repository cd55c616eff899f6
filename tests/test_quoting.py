"""Escaping: strings of any origin are shown literally in a terminal, JSON, TOML, Markdown and a command."""

from __future__ import annotations

import ast
import json
import shlex
import tomllib

import pytest
from hostile import NAMES, STEERS, links_and_html, shape, text_of
from hypothesis import given, settings
from hypothesis import strategies as st

from lorsmerge_cli.quoting import (
    code,
    fence,
    json_escaped,
    markdown,
    printable,
    python_command,
    toml_value,
)

TEXTS = st.text(
    st.sampled_from("a1 .-+#=>:|\\`*_[]()<&;~$!\n\t\"'{}@/") | st.characters(), max_size=30
)
QUICK = settings(max_examples=300, deadline=None, derandomize=True)
EVERY_NAME = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)


@EVERY_NAME
def test_nothing_steers_the_terminal(name: str) -> None:
    assert not STEERS.search(printable(name))
    assert "\n" not in printable(name)
    assert printable(name, lines=True).count("\n") == name.count("\n")


@pytest.mark.parametrize(
    "text",
    [
        "ca.delta",
        "größe 😀",
        "नि\u200dर्\u200cमल",
        "\u0645\u06cc\u200c\u062e",
        "\u0662\u0600",
        "日本語",
        "a b",
        "",
    ],
)
def test_text_of_people_is_printed_as_it_is(text: str) -> None:
    assert printable(text) == text
    assert json_escaped(json.dumps(text, ensure_ascii=False)) == json.dumps(
        text, ensure_ascii=False
    )


@pytest.mark.parametrize(
    ("char", "spelled"),
    [("\x1b", r"\x1b"), ("\x9b", r"\x9b"), ("\n", r"\x0a"), ("\u202e", r"\u202e"),
     ("\ud800", r"\ud800"), ("\U000e0041", r"\U000e0041"), ("\u2028", r"\u2028")],
)  # fmt: skip
def test_what_is_hidden_is_spelled(char: str, spelled: str) -> None:
    assert printable(f"a{char}b") == f"a{spelled}b"


@QUICK
@given(text=st.text(st.characters() | st.sampled_from("\x7f\x9b\u202e\ud800\U000e0041")))
def test_json_has_the_same_value_and_steers_nothing(text: str) -> None:
    document = json.dumps({text: [text]}, ensure_ascii=False, indent=2)
    escaped = json_escaped(document)
    assert json.loads(escaped) == {text: [text]}
    assert not STEERS.search(escaped)


@QUICK
@given(
    text=st.text(st.characters(exclude_categories=("Cs",)) | st.sampled_from("\x7f\x9b\U000e0041"))
)
def test_toml_has_the_same_value(text: str) -> None:
    line = f"key = {toml_value(text)}"
    assert tomllib.loads(line) == {"key": text}
    assert len(line.splitlines()) == 1
    assert not STEERS.search(line)


@EVERY_NAME
def test_markdown_is_the_text_alone(name: str) -> None:
    shown = markdown(name)
    for page in (shown, f"# {shown}", f"| head | |\n| --- | --- |\n| {shown} | x |"):
        assert links_and_html(page) == []
        assert shape(page) == shape(page.replace(shown, "x"))


@QUICK
@given(text=TEXTS)
def test_markdown_shows_what_was_given(text: str) -> None:
    """Checked with an independent CommonMark parser, in a paragraph, a heading and a cell."""
    wanted = printable(" ".join(text.split()))
    shown = markdown(text)
    assert links_and_html(shown) == []
    if wanted:
        assert shape(shown) == ["paragraph_open", "inline", "paragraph_close"]
        assert text_of(shown) == wanted
    row = shape(f"| a | b |\n| --- | --- |\n| {shown} | {shown} |")
    assert row == shape("| a | b |\n| --- | --- |\n| x | x |")


@QUICK
@given(text=TEXTS)
def test_inline_code_shows_what_was_given(text: str) -> None:
    wanted = printable(" ".join(text.split()))
    if wanted:
        assert shape(f"Put {code(text)} there.") == ["paragraph_open", "inline", "paragraph_close"]
        assert text_of(f"Put {code(text)} there.") == f"Put {wanted} there."


@EVERY_NAME
def test_a_fence_ends_where_it_ends(name: str) -> None:
    page = f"{fence(name, 'sh')}\n\nafter"
    assert shape(page) == ["fence sh", "paragraph_open", "inline", "paragraph_close"]


@EVERY_NAME
def test_a_python_command_is_one_argument(name: str) -> None:
    command = python_command(f"print({name!r})")
    program, option, given = shlex.split(command)
    assert (program, option) == ("python", "-c")
    call = ast.parse(given).body
    assert len(call) == 1
    assert ast.literal_eval(call[0].value.args[0]) == name  # type: ignore[attr-defined]
