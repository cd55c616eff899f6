"""Utterances that a fine-tune skipped: kept beside its state, and accepted when they are removed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorsmerge_cli.data.dataset import DataReport
from lorsmerge_cli.data.utterance import Drop, Utterance
from lorsmerge_cli.errors import UnreadableFile
from lorsmerge_cli.inputs import json_object, open_regular, read_json
from lorsmerge_cli.usage import SKIPPED, STATE

ROW = ("id", "text", "language", "task", "duration", "start", "speaker", "segment")  # as they are


@dataclass(frozen=True)
class Skipped:
    """A row of the training data whose audio could not be read, and why."""

    row: Utterance
    drop: Drop


def said(row: Utterance) -> list[Any]:
    """Return what a row says, and its audio by name alone."""
    return [
        row.id, row.language, row.task, row.text, row.duration, row.start, row.audio.name,
    ]  # fmt: skip


def row_digests(rows: Sequence[Utterance]) -> list[str]:
    """Return twelve characters for each row that tell it from any other."""
    return [hashlib.sha256(json.dumps(said(row)).encode()).hexdigest()[:12] for row in rows]


def add_skipped(folder: Path, rows: Sequence[Utterance], drops: Sequence[Drop]) -> None:
    """Append to the skipped rows of the run in a folder.

    Args:
        folder: of the run's state.
        rows: of the training data.
        drops: those newly skipped.
    """
    by_id = {row.id: row for row in rows}
    lines = []
    for drop in drops:
        row = by_id[drop.id]
        kept = {name: getattr(row, name) for name in ROW}
        kept |= {"audio": os.fspath(row.audio), "reason": drop.reason, "detail": drop.detail}
        lines.append(json.dumps(kept, ensure_ascii=False) + "\n")
    with (folder / SKIPPED).open("a", encoding="utf-8", newline="\n") as file:
        file.write("".join(lines))


def read_skipped(folder: Path) -> dict[str, Skipped]:
    """Return the rows that the run in a folder skipped, by id; a last line that was cut is ignored.

    Raises:
        UnreadableFile: there are other things in the file.
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
            row = Utterance(audio=audio, **{name: kept[name] for name in ROW})
            drop = Drop(row.id, audio, kept["reason"], kept["detail"])
        except (ValueError, KeyError, TypeError):
            raise UnreadableFile(
                f"{path}, line {number} is damaged.",
                "Begin anew with --force in place of --resume.",
            ) from None
        found[row.id] = Skipped(row, drop)
    return found


def with_removed(
    report: DataReport, folder: Path, hours: float | None
) -> tuple[DataReport, set[str]]:
    """Put skipped rows that were removed since back where the run in a folder had them.

    A resumed run then has the order and the steps of the one that was interrupted.

    Args:
        report: the training data as it is now.
        folder: of the run's state.
        hours: of the subset that it is. A subset has other rows in the place of one removed, which
            are left out.

    Returns:
        The data and the ids of the rows put back; as it was and none where it differs from that of
        the run by more than this.
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
    if hours is None and any(
        row.id not in skipped for row in added
    ):  # nor mended with a new length
        return report, set()
    rows = tuple(there.get(digest) or removed[digest] for digest in wanted)
    return replace(report, utterances=rows), {row.id for row in removed.values()}
