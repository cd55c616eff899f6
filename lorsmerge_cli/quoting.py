"""Escaping of strings of any origin for the terminal, JSON, TOML, Markdown, LaTeX and the shell."""

from __future__ import annotations

import json
import re
import shlex
import unicodedata
from collections.abc import Callable
from pathlib import Path

# Characters of Unicode's category "format" that belong to a text: the joiners of Persian and the
# scripts of India, and the signs that Arabic, Syriac and Kaithi write before a number.
SPELLING = frozenset(
    "\u200c\u200d\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2"
    "\U000110bd\U000110cd"
)
MARKUP = re.compile(r"([\\`*_\[\]|])")
ENTITY = re.compile(r"&(?=#?\w+;)")
AUTOLINK = re.compile(r"(?<=\w)(:)(?=//)|(?<=www)(\.)", re.IGNORECASE)
# Start of a heading, quote, list or rule: its first character, or the one after a number, is escaped.
BLOCK_START = re.compile(
    r"(?P<number>\d{1,9}(?=[.)](?:\s|$)))|#{1,6}(?=\s|$)|>|[+-](?=\s|$)|[-=]+$"
)
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "†": r"\textsuperscript{\textdagger}", "‡": r"\textsuperscript{\textdaggerdbl}",
    "±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "\N{EN DASH}": "--", "\N{MINUS SIGN}": "$-$", "<": r"$<$", ">": r"$>$",
    "↳": r"$\hookrightarrow$", "§": r"\S{}",
}  # fmt: skip


def printable(text: str, *, lines: bool = False) -> str:
    r"""Return the text with invisible characters and terminal control characters escaped.

    These are control characters, direction marks, zero-width characters except joiners, line
    separators and lone surrogates.

    Args:
        text: of any origin.
        lines: keep newlines.

    Example:
        >>> print(printable("a\x1b[31m\u202eb\n"))
        a\x1b[31m\u202eb\x0a
    """
    if text.isprintable():
        return text
    return "".join(
        _spelled(ch) if _is_hidden(ch) and not (lines and ch == "\n") else ch for ch in text
    )


def one_line(text: str) -> str:
    r"""Return the text as one line of `printable` characters.

    Example:
        >>> one_line(" a\n  b ")
        'a b'
    """
    return printable(" ".join(text.split()))


def _is_hidden(ch: str) -> bool:
    category = unicodedata.category(ch)
    return category in ("Cc", "Cs", "Zl", "Zp") or (category == "Cf" and ch not in SPELLING)


def _spelled(ch: str) -> str:
    """Return Python's numeric escape of a character."""
    is_named = ch in "\t\n\r"  # those that Python escapes by a letter
    return f"\\x{ord(ch):02x}" if is_named else ch.encode("unicode_escape").decode()


def json_escaped(document: str) -> str:
    r"""Return JSON of the same value, with the characters that `printable` escapes escaped.

    Example:
        >>> print(json_escaped('"\u202e\x9b"'))
        "\u202e\u009b"
    """
    return _escaped(document, lambda ch: json.dumps(ch)[1:-1])


def toml_value(value: object) -> str:
    r"""Return a string, a number or a list of them as TOML, escaped like `json_escaped`.

    Example:
        >>> print(toml_value("a\x7fb"))
        "a\u007fb"
    """
    return _escaped(json.dumps(value, ensure_ascii=False), lambda ch: f"\\U{ord(ch):08x}")


def _escaped(document: str, beyond: Callable[[str], str]) -> str:
    """Escape hidden characters; `beyond` escapes those that need more than four digits."""

    def escaped(match: re.Match[str]) -> str:
        ch = match[0]
        if not _is_hidden(ch):
            return ch
        return f"\\u{ord(ch):04x}" if ord(ch) < 0x10000 else beyond(ch)

    return re.sub(r"[^\n -~]", escaped, document)


def markdown(text: str) -> str:
    r"""Return Markdown that shows a text literally, in a paragraph, a heading or a table's cell.

    Example:
        >>> print(markdown("a|b <script> [x](http://y)"))
        a\|b &lt;script> \[x\](http\://y)
    """
    shown = MARKUP.sub(r"\\\1", one_line(text))
    shown = ENTITY.sub("&amp;", shown).replace("<", "&lt;")
    for sign in "~$":  # a pair of them marks struck-out text or a formula
        if shown.count(sign) > 1:
            shown = shown.replace(sign, "\\" + sign)
    shown = AUTOLINK.sub(r"\\\g<0>", shown)
    start = BLOCK_START.match(shown)
    if start is None:
        return shown
    index = start.end() if start["number"] else 0
    return f"{shown[:index]}\\{shown[index:]}"


def latex(text: str) -> str:
    r"""Return LaTeX that shows a text literally, in a paragraph, a caption or a table's cell.

    Example:
        >>> print(latex("50%_of {x}"))
        50\%\_of \{x\}
    """
    return "".join(LATEX.get(ch, ch) for ch in one_line(text))


def code(text: str) -> str:
    """Return a text as inline code of Markdown.

    Example:
        >>> print(code("a`b"))
        `` a`b ``
    """
    shown = one_line(text)
    ticks = "`" * (_longest_run(shown) + 1)
    return f"{ticks} {shown} {ticks}" if "`" in shown else f"{ticks}{shown}{ticks}"


def fence(text: str, info: str) -> str:
    """Return a fenced block of Markdown that no line of the text can close.

    Args:
        text: the block's content.
        info: the info string, such as its language.
    """
    ticks = "`" * max(3, _longest_run(text) + 1)
    return f"{ticks}{info}\n{printable(text.strip(), lines=True)}\n{ticks}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def command(*words: str | Path) -> str:
    r"""Return a command that can be pasted into bash, whatever characters its words hold.

    Args:
        words: of the command; a Path that begins with a dash gets `./` in front of it.

    Example:
        >>> print(command("lorsmerge", "inspect", Path("-my model"), "a\nb"))
        lorsmerge inspect './-my model' $'a\u000ab'
    """
    return " ".join(map(_shell_word, words))


def _shell_word(word: str | Path) -> str:
    text = str(word)
    if isinstance(word, Path) and text.startswith("-"):
        text = f"./{text}"
    if printable(text) == text:
        return shlex.quote(text)
    return "$'" + "".join(_ansi_c(ch) for ch in text) + "'"


def _ansi_c(ch: str) -> str:
    """Return a character as it is written in `$'...'`."""
    code = ord(ch)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if _is_hidden(ch):
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return f"\\{ch}" if ch in "\\'" else ch


def python_command(code: str) -> str:
    """Return the shell command that runs Python code."""
    plain = not re.search(r'["$`\\!]', code)  # special within a shell's double quotes
    return f'python -c "{code}"' if plain else f"python -c {shlex.quote(code)}"
