"""Read the values of a manifest's row, and check their types.

JSON's `null` and `NaN` (which pandas writes for an empty cell) are missing values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorsmerge_cli.data.audio_source import AudioSource
from lorsmerge_cli.data.languages import find_language
from lorsmerge_cli.data.utterance import MISSING, TANGLED, Drop, Segment
from lorsmerge_cli.errors import UnreadableFile

Values = Mapping[str, Any]
ROUNDING = 0.05  # seconds below zero that the difference of two rounded times may have


class Skip(Exception):
    """A row that cannot be used, although others of its manifest can.

    Attributes:
        reason: one of few, by which rows are counted.
        detail: which row it is, and its value.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(detail)

    def drop(self, name: str, audio: AudioSource | Path) -> Drop:
        """Return the row as one that is dropped.

        Args:
            name: id of the row.
            audio: its recording, or its manifest.
        """
        return Drop(name, audio, self.reason, self.detail)


def is_missing(value: object) -> bool:
    """Return whether a value is null or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def first(row: Values, keys: Sequence[str]) -> tuple[str, Any]:
    """Return the first key that a row has a value for, and that value; ("", None) without one."""
    return next(((key, row[key]) for key in keys if not is_missing(row.get(key))), ("", None))


def read_name(row: Values, keys: Sequence[str], where: str) -> str | None:
    """Read a language or a task; None if it is missing or empty.

    Raises:
        UnreadableFile: it is no string; `where` names the row.
    """
    key, value = first(row, keys)
    if value is not None and not isinstance(value, str):
        raise UnreadableFile(
            f"{where}: {key} is {_shown(value)}, and a string is needed.",
            "Give the code or the name, or leave the key out and use the option.",
        )
    return value or None


def read_label(row: Values, keys: Sequence[str], where: str) -> str | None:
    """Read a speaker or an id, a string or a whole number; None if it is missing or empty.

    Raises:
        Skip: it is of another type.
    """
    key, value = first(row, keys)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas makes floats of a column of integers with an empty cell
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None:
        return None
    if not isinstance(value, str) or not is_text(value):
        raise Skip(f"{key} is no string", f"{where}: {key} is {_shown(value)}")
    return value or None


def in_language(texts: Mapping[str, Any], language: str) -> Any:
    """Return the text of a language from `{"en": ..., "ca_es": ...}`; None if it has none.

    A key may be any code or name of the language; Whisper's code comes first.
    """
    found = [texts.get(language)]
    found += [text for name, text in texts.items() if find_language(name) == language]
    return next((text for text in found if not is_missing(text)), None)


def read_gender(row: Values, keys: Sequence[str]) -> str | None:
    """Read a gender in lower case; None if it is missing, empty or no text, which is no fault of a row.

    Example:
        >>> read_gender({"gender": " Female "}, ("gender",)), read_gender({"gender": 1}, ("gender",))
        ('female', None)
    """
    _, value = first(row, keys)
    return (value.strip().lower() or None) if isinstance(value, str) and is_text(value) else None


def read_text(row: Values, keys: Sequence[str], language: str, where: str) -> str:
    """Read a text, or that of one language from an object with several.

    Args:
        row: of a manifest.
        keys: one of which the row has.
        language: whose text is taken from `{"en": ..., "ca": ...}`.
        where: the row, in a message.

    Raises:
        Skip: it is missing (an empty one is not), or no string.
        UnreadableFile: it is a list.
    """
    key, value = first(row, keys)
    if isinstance(value, dict):
        held = ", ".join(map(_shown, value)) or "nothing"
        value = in_language(value, language)
        if is_missing(value):
            raise Skip("empty text", f"{where}: {key} has no text in {language} (it has {held})")
        key = f"{key}[{language}]"
    if is_missing(value):
        raise Skip("empty text", f"{where}: {key or 'the text'} is null or NaN")
    if isinstance(value, list):
        raise UnreadableFile(
            f"{where}: {key} is a list of {len(value)}, and several references are not supported.",
            "Give each row one string.",
        )
    if not isinstance(value, str) or not is_text(value):
        raise Skip("text is no string", f"{where}: {key} is {_shown(value)}")
    return value


def read_audio(row: Values, keys: Sequence[str], where: str) -> str:
    """Read a path, or that in `{"path": ..., "bytes": ...}`.

    Args:
        row: of a manifest.
        keys: one of which the row has.
        where: the row, in a message.

    Raises:
        Skip: it is missing, or no path.
        UnreadableFile: there are bytes or samples in place of a path.
    """
    inside = ""
    for key in keys:
        value = row.get(key)
        if isinstance(value, dict):
            held = next((name for name in ("bytes", "array") if value.get(name)), "")
            inside = inside or (f"{key} holds {held}" if held else "")
            value = value.get("path")
        if is_missing(value) or value == "":
            continue
        if not isinstance(value, str) or not is_text(value):
            raise Skip("audio is no path", f"{where}: {key} is {_shown(value)}")
        return value
    if inside:
        raise UnreadableFile(
            f"{where}: {inside} and no path, and audio within a manifest is not read.",
            "Write the audio to files and give their paths.",
        )
    raise Skip(MISSING, f"{where} names no audio file")


def read_seconds(row: Values, key: str, where: str) -> float | None:
    """Read a time in seconds; None if it is missing.

    Raises:
        Skip: it is negative, NaN or infinite.
        UnreadableFile: it is no number.
    """
    value = row.get(key)
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    except (TypeError, ValueError):
        raise UnreadableFile(
            f"{where}: times have to be numbers of seconds, and {key} is {_shown(value)}.",
            "Correct the line.",
        ) from None
    return check_seconds(seconds, key, where)


def read_segments(row: Values, where: str) -> tuple[Segment, ...]:
    """Read the parts of a text with their times, `[{"start": 0.0, "end": 2.5, "text": "..."}, ...]`.

    Returns:
        Those with a text; empty if the row has none.

    Raises:
        Skip: they overlap, are not in order, or a text is no string.
        UnreadableFile: they are no such list, or a time is no number.
    """
    listed = row.get("segments")
    if is_missing(listed):
        return ()
    if not isinstance(listed, list) or not all(isinstance(part, dict) for part in listed):
        raise UnreadableFile(
            f"{where}: segments is {_shown(listed)}, and a list of objects is needed.",
            'Give each a start, an end and a text: {"start": 0.0, "end": 2.5, "text": "..."}.',
        )
    found: list[Segment] = []
    for number, part in enumerate(listed, 1):
        named = f"{where}, segment {number}"
        times = [read_seconds(part, key, named) for key in ("start", "end")]
        if times[0] is None or times[1] is None:
            raise UnreadableFile(f"{named} has no start or no end.", "Give both, in seconds.")
        text = " ".join(read_text(part, ("text",), "", named).split())
        start, end = max(times[0], found[-1].end if found else 0.0), times[1]
        if times[0] < start - ROUNDING or end <= start:
            told = f"{named} is from {times[0]:g} to {times[1]:g} s"
            raise Skip(TANGLED, told + (f", after one to {found[-1].end:g} s" if found else ""))
        if text:
            found.append(Segment(start, end, text))
    return tuple(found)


def check_seconds(seconds: float, key: str, where: str) -> float:
    """Check a time; one that is negative by a rounding error is zero.

    Raises:
        Skip: it is negative, NaN or infinite.
    """
    if not math.isfinite(seconds) or seconds < -ROUNDING:
        raise Skip(f"{key} is negative, NaN or infinite", f"{where}: {key} is {seconds}")
    return max(seconds, 0.0)


def is_text(text: str) -> bool:
    """Return whether a text can be encoded: JSON's escapes can name half of a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
