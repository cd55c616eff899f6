"""Read a Kaldi data folder: wav.scp and text, and segments, utt2spk and utt2lang if they exist."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.readers.fields import (
    Defaults,
    language_and_task,
    unreadable,
)
from lorsmerge_cli.data.readers.values import Skip, check_seconds
from lorsmerge_cli.data.utterance import EMPTY, Drop, Utterance
from lorsmerge_cli.errors import LorsmergeError, UnreadableFile
from lorsmerge_cli.inputs import open_text
from lorsmerge_cli.quoting import command

NEEDS = "wav.scp and text (a Kaldi data folder)"
ARCHIVE = re.compile(r".*\.ark(:\d+)?(\[.*\])?|.*:\d+")
TO_THE_END = -1.0  # as the end of a segment


def detects(path: Path) -> bool:
    """Return whether a path is of this format."""
    return (path / "wav.scp").is_file() and (path / "text").is_file()


def splits(path: Path) -> tuple[str, ...]:
    """Return no names: a folder is one split."""
    return ()


def read(path: Path, split: str | None, defaults: Defaults) -> list[Utterance | Drop]:
    """Read the rows of `text`, in its order; relative audio paths start at the working folder.

    Raises:
        UnreadableFile: the folder's tables do not fit together; audio is a command, in an archive,
            or one channel of several.
    """
    recordings = _pairs(path / "wav.scp")
    segments = _pairs(path / "segments") if (path / "segments").is_file() else None
    speakers, languages, channels = (
        _pairs(path / name) if (path / name).is_file() else {}
        for name in ("utt2spk", "utt2lang", "reco2file_and_channel")
    )

    columns = _columns(path, speakers, defaults)

    found: list[Utterance | Drop] = []
    texts = _pairs(path / "text")
    for name, text in texts.items():
        where = f"{path}: {name!r}"
        recording, *piece = [name] if segments is None else _segment(path, segments, name)
        audio = AudioFile(_audio(path, recordings, recording))
        cells = {key: table.get(name) for key, table in columns.items()}
        try:
            language, task = language_and_task(languages.get(name), None, defaults, where, cells)
            start, duration = _times(piece, where) if piece else (0.0, None)
            named = piece[2] if len(piece) > 2 else channels.get(recording, "").rpartition(" ")[2]
            _check_channel(audio, named, where)
            row = Utterance(name, audio, text, language, task, duration, start, speakers.get(name))
            found.append(replace(row, segment=bool(piece)))
        except Skip as skip:
            found.append(skip.drop(name, audio))
    table = path / ("wav.scp" if segments is None else "segments")
    for name in recordings if segments is None else segments:
        if name not in texts:
            found.append(
                Drop(name, table, "empty text", f"{path / 'text'} has no line for {name!r}")
            )
    return found


def _columns(path: Path, speakers: dict[str, str], defaults: Defaults) -> dict[str, dict[str, str]]:
    """Return what conditions are on by utterance, from `utt2NAME` or `spk2NAME`."""
    defaults.wanted.add_columns(
        file.name[4:]
        for file in sorted(path.glob("???2*"))
        if file.name[:4] in ("utt2", "spk2") and file.name != "spk2utt"
    )
    found: dict[str, dict[str, str]] = {}
    for name in defaults.wanted.columns:
        if "/" not in name and (path / f"utt2{name}").is_file():
            found[name] = _pairs(path / f"utt2{name}")
        elif "/" not in name and (path / f"spk2{name}").is_file():
            by_speaker = _pairs(path / f"spk2{name}")
            found[name] = {
                row: by_speaker[who] for row, who in speakers.items() if who in by_speaker
            }
    return found


def _audio(path: Path, recordings: dict[str, str], recording: str) -> Path:
    table = path / "wav.scp"
    if recording not in recordings:
        raise UnreadableFile(
            f"{table} has no recording {recording!r}, which text names.",
            "Run Kaldi's fix_data_dir.sh on the folder.",
        )
    audio = recordings[recording]
    if audio.endswith("|"):
        raise UnreadableFile(
            f"{table}: {recording!r} is a command, and commands are not run.",
            "Write its output to a file and name that.",
        )
    if ARCHIVE.fullmatch(audio) and not Path(audio).is_file():
        raise UnreadableFile(
            f"{table}: {recording!r} is in an archive ({audio}), and archives are not read.",
            "Write it to a file and name that: "
            f"`{command('wav-copy', Path(audio), Path(f'{recording}.wav'))}`, with Kaldi's wav-copy.",
        )
    return Path(audio)


def _segment(path: Path, segments: dict[str, str], name: str) -> list[str]:
    """Return recording, start and end, and the channel if there is one."""
    cells = segments.get(name, "").split()
    if len(cells) not in (3, 4):
        raise UnreadableFile(
            f"{path / 'segments'} has no recording, start and end for {name!r}.",
            "Run Kaldi's fix_data_dir.sh on the folder.",
        )
    return cells


def _times(piece: list[str], where: str) -> tuple[float, float | None]:
    """Return start and duration of a segment; None as duration is up to the end of its file."""
    try:
        start, end = float(piece[0]), float(piece[1])
    except ValueError:
        raise UnreadableFile(
            f"{where} has a segment from {piece[0]!r} to {piece[1]!r}, which are no times.",
            "Give seconds.",
        ) from None
    start = check_seconds(start, "start", where)
    if end == TO_THE_END:
        return start, None
    duration = check_seconds(end, "end", where) - start
    if duration <= 0:
        raise Skip(EMPTY, f"{where} ends at {end} and starts at {start}")
    return start, duration


def _check_channel(audio: AudioFile, named: str, where: str) -> None:
    """Refuse one channel of several, which would be mixed with the others.

    Args:
        audio: of the row.
        named: `0`, `1` in segments, `A`, `B` in reco2file_and_channel, or "" or `-1` for none.
        where: the row, in a message.
    """
    if named in ("", "-1"):
        return
    count = _channels(audio)
    if count > 1:
        raise UnreadableFile(
            f"{where} is channel {named} of {audio}, which has {count}; channels are not taken apart.",
            "Write each channel to a file of its own (`sox IN OUT remix 1` for the first) and name it.",
        )
    if count == 1 and named.isdigit() and int(named) > 0:
        raise Skip(
            "channel is not in its file", f"{where} is channel {named} of {audio}, which has 1"
        )


@cache
def _channels(audio: AudioFile) -> int:
    """Return the number of channels; 0 if the file cannot be read, which is reported later."""
    from lorsmerge_cli.data.audio import audio_channels

    try:
        return audio_channels(audio)
    except LorsmergeError:
        return 0


def _pairs(path: Path) -> dict[str, str]:
    """Read the lines of a table, each as a key and the rest."""
    try:
        with open_text(path) as file:
            lines = file.read().split("\n")  # as Kaldi has it
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        key, *rest = line.split(maxsplit=1)
        if key in found:
            raise UnreadableFile(
                f"{path}, line {number}: {key!r} has a line already.",
                "Kaldi's names are unique: remove one of the lines, or run fix_data_dir.sh.",
            )
        found[key] = rest[0].strip() if rest else ""
    return found
