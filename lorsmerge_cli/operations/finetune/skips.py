"""Record the utterances that a fine-tune skipped, so that it can be resumed without them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.hours import Given
from lorsmerge_cli.data.report import DataReport
from lorsmerge_cli.data.utterance import Drop, Utterance
from lorsmerge_cli.errors import UnreadableFile
from lorsmerge_cli.inputs import json_object, open_regular, read_json
from lorsmerge_cli.usage import SKIPPED, STATE

ROW = ("id", "text", "language", "task", "duration", "start", "speaker", "segment")  # on file


@dataclass(frozen=True)
class Skipped:
    """A row of the training data whose audio could not be read, and why."""

    row: Utterance
    drop: Drop


def row_values(row: Utterance) -> list[Any]:
    """Return the values of a row, its audio by name alone."""
    values = [
        row.id, row.language, row.task, row.text, row.duration, row.start, row.audio.name,
    ]  # fmt: skip
    more = [row.segments, [row_values(piece) for piece in row.pieces], row.previous, row.before]
    return [*values, *more] if any(more) else values


def row_digests(rows: Sequence[Utterance]) -> list[str]:
    """Return a digest of twelve characters for each row."""
    return [hashlib.sha256(json.dumps(row_values(row)).encode()).hexdigest()[:12] for row in rows]


def add_skipped(folder: Path, rows: Sequence[Utterance], drops: Sequence[Drop]) -> None:
    """Append to the skipped rows of the run in a folder.

    Args:
        folder: of the run's state.
        rows: of the training data.
        drops: the newly skipped ones.
    """
    by_id = {row.id: row for row in rows}
    lines = []
    for drop in drops:
        row = by_id[drop.id]
        kept = {name: getattr(row, name) for name in ROW}
        kept |= {"audio": str(row.audio), "reason": drop.reason, "detail": drop.detail}
        lines.append(json.dumps(kept, ensure_ascii=False) + "\n")
    with (folder / SKIPPED).open("a", encoding="utf-8", newline="\n") as file:
        file.write("".join(lines))


def read_skipped(folder: Path) -> dict[str, Skipped]:
    """Return the rows that the run in a folder skipped, by id; an incomplete last line is ignored.

    Raises:
        UnreadableFile: a line of the file is damaged.
    """
    path = folder / SKIPPED
    if not path.is_file():
        return {}
    with open_regular(path) as file:
        *lines, _ = file.read().split(b"\n")
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            kept = json_object(line)
            audio = Path(kept["audio"])
            row = Utterance(audio=AudioFile(audio), **{name: kept[name] for name in ROW})
            drop = Drop(row.id, audio, kept["reason"], kept["detail"])
        except (ValueError, KeyError, TypeError):
            raise UnreadableFile(
                f"{path}, line {number} is damaged.",
                "Begin anew with --force in place of --resume.",
            ) from None
        found[row.id] = Skipped(row, drop)
    return found


def with_removed(report: DataReport, folder: Path, hours: Given) -> tuple[DataReport, set[str]]:
    """Restore skipped rows that were removed from the data, so that order and steps stay the same.

    Args:
        report: the training data as it is now.
        folder: of the run's state.
        hours: size of the subset that the data is. A subset takes other rows for those removed, which
            are not used.

    Returns:
        The data, and the ids of restored rows; unchanged and none if the data differs in other ways.
    """
    skipped = read_skipped(folder)
    if not skipped:
        return report, set()
    try:
        wanted = [str(digest) for digest in read_json(folder / STATE)["rows"]]
    except (OSError, ValueError, KeyError, TypeError):
        return report, set()
    there = dict(zip(row_digests(report.utterances), report.utterances, strict=True))
    gone = [entry.row for entry in skipped.values()]
    removed = {
        digest: row
        for digest, row in zip(row_digests(gone), gone, strict=True)
        if digest not in there
    }
    added = [row for digest, row in there.items() if digest not in set(wanted)]
    if not removed or any(digest not in there and digest not in removed for digest in wanted):
        return report, set()
    # a row that was mended may have a new length
    if hours is None and any(row.id not in skipped for row in added):
        return report, set()
    rows = tuple(there.get(digest) or removed[digest] for digest in wanted)
    return replace(report, utterances=rows), {row.id for row in removed.values()}
