"""What `eval` reads and writes beside its results: hypotheses, and sclite's transcripts."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import NoneType
from typing import NamedTuple

from lorsmerge_cli.data.languages import TASKS
from lorsmerge_cli.data.utterance import Answer, Utterance
from lorsmerge_cli.errors import Mismatch, OutputFault, UnreadableFile, raise_all
from lorsmerge_cli.inputs import json_object, open_regular, parse_json
from lorsmerge_cli.outputs import atomic_file
from lorsmerge_cli.results.beginning import check_hypotheses_begin
from lorsmerge_cli.results.records import Hypothesis, Record

MIDDLE = 4096  # bytes of an audio file that tell it from another
SHOWN = 3  # repeated utterances in an error
_FIELDS = {field.name for field in fields(Hypothesis)}


class HypothesesFile:
    """JSON lines that grow while models are decoded, and from which a run goes on.

    Every line says which weights and decoding settings made it; lines of others are an error,
    so that a table never mixes them.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._mended = False
        self._known: list[KnownHypothesis] = []
        self._sizes: dict[str, int] = {}  # data set -> its utterances
        if path is not None and path.is_file():
            self._known = read_hypotheses(path)

    def known(
        self, model: str, dataset: str, made_by: str, utterances: Sequence[Utterance]
    ) -> dict[str, Answer]:
        """Utterance id -> what was said to it in an earlier run.

        Raises:
            Mismatch: they were made by other weights or settings, or of other audio.
        """
        found = {}
        self._sizes[dataset] = len(utterances)
        wanted = {(row.id, row.language, row.task): row for row in utterances}
        for row, its_maker, its_audio, *_ in self._known:
            utterance = wanted.get((row.id, row.language, row.task))
            if (row.model, row.dataset) != (model, dataset) or utterance is None:
                continue
            if its_audio != heard(utterance):
                raise Mismatch(
                    f"{self.path} holds what {model!r} said to other audio than {utterance.audio}, "
                    f"under the same name: {row.id!r} of {dataset!r}.",
                    "Give another --hypotheses file, or name the test set with --data NAME=PATH.",
                )
            if its_maker != made_by:
                raise Mismatch(
                    f"{self.path} holds hypotheses of {model!r} on {dataset!r} that were made "
                    f"otherwise: {_changed(its_maker, made_by)}.",
                    "Give another --hypotheses file, or remove this one.",
                )
            found[row.id] = Answer(row.hypothesis, row.cut)
        return found

    def add(self, hypotheses: Iterable[tuple[Hypothesis, Utterance]], made_by: str) -> None:
        """Append what was said to utterances, and see to it that the lines are on disk."""
        if self.path is None:
            return
        lines = [
            json.dumps(
                asdict(row)
                | {
                    "made_by": made_by,
                    "heard": heard(utterance),
                    "of": self._sizes.get(row.dataset, 0),
                },
                ensure_ascii=False,
            )
            + "\n"
            for row, utterance in hypotheses
        ]
        try:
            if not self._mended:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                _drop_cut_line(self.path)
                self._mended = True
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write("".join(lines))
        except OSError as error:
            raise OutputFault(
                f"{self.path} cannot be written ({error.strerror}).", "Choose another file."
            ) from None


def _changed(before: str, now: str) -> str:
    """What differs between two makers, each `weights|setting:value|...`."""
    (weights, *old), (others, *new) = before.split("|"), now.split("|")
    parts = [f"{a}, now {b}" for a, b in zip(old, new, strict=False) if a != b]
    return "; ".join(["by other weights"] * (weights != others) + parts)


def heard(utterance: Utterance) -> str:
    """What tells an utterance's audio from any other: place and length, size and middle bytes."""
    piece = f"{utterance.start:.3f}+{utterance.duration or 0.0:.3f}"
    try:
        size = utterance.audio.stat().st_size
        with utterance.audio.open("rb") as file:
            file.seek(max(0, size - MIDDLE) // 2)
            middle = file.read(MIDDLE)
    except OSError:  # decoding says so
        return piece
    return f"{piece}:{size}:{hashlib.sha256(middle).hexdigest()[:12]}"


class KnownHypothesis(NamedTuple):
    """A line of a file of hypotheses: what was said, by what, to what, and how many there will be.

    Attributes:
        of: utterances of the data set; 0 where an older version did not say.
        line: of the file, from 1 on.
    """

    row: Hypothesis
    made_by: str
    heard: str
    of: int
    line: int


def read_hypotheses(path: Path) -> list[KnownHypothesis]:
    """Hypotheses, what made each and what of; a last line that was cut short by a kill is left out.

    Raises:
        UnreadableFile: it is no such file.
    """
    try:
        with open_regular(path) as file:
            lines = file.read().split(b"\n")  # texts may hold what str.splitlines splits at
    except OSError as error:
        raise UnreadableFile(f"{path} cannot be read ({error}).", "Check the path.") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json_object(line)
            _check_types(row)
            said = Hypothesis(**{key: row[key] for key in _FIELDS if key in row})
            about = row.get("made_by", ""), row.get("heard", ""), int(row.get("of", 0))
            found.append(KnownHypothesis(said, *about, number))
        except (ValueError, KeyError, AttributeError, TypeError):
            if number == len(lines):
                continue
            raise UnreadableFile(
                f"{path}, line {number} is no hypothesis.",
                "Give a file that `eval --hypotheses` wrote.",
            ) from None
    return found


def finished_sets(path: Path, known: Sequence[KnownHypothesis]) -> dict[str, tuple[int, int]]:
    """Check that every model of a file of hypotheses answered the same utterances.

    Returns:
        Data set -> utterances answered, and those that there are.

    Raises:
        Mismatch: one model answered others, as when a run was stopped in its middle.
    """
    answered: dict[str, dict[str, set[tuple[str, str, str]]]] = {}
    sizes: dict[str, int] = {}
    for row, _, _, of, _ in known:
        ids = answered.setdefault(row.dataset, {}).setdefault(row.model, set())
        ids.add((row.id, row.language, row.task))
        sizes[row.dataset] = max(sizes.get(row.dataset, 0), of)
    for dataset, models in answered.items():
        every = set.union(*models.values())
        sizes[dataset] = max(sizes[dataset], len(every))
        if any(ids != every for ids in models.values()):
            counts = (f"{model} {len(ids)} of {sizes[dataset]}" for model, ids in models.items())
            raise Mismatch(
                f"{path} is unfinished: its models answered different utterances of {dataset!r}: "
                f"{', '.join(counts)}.",
                "Finish it first: run the command that made it again, without --score-only.",
            )
    return {
        dataset: (len(next(iter(models.values()))), sizes[dataset])
        for dataset, models in answered.items()
    }


def check_answered_once(path: Path, known: Sequence[KnownHypothesis]) -> None:
    """Check that no model of a file of hypotheses answered an utterance twice.

    Raises:
        Mismatch: one did, in the lines that it names; both would be scored.
    """
    lines: dict[tuple[str, ...], list[int]] = {}
    for row, _, _, _, line in known:
        key = (row.model, row.dataset, row.id, row.language, row.task)
        lines.setdefault(key, []).append(line)
    twice = {key: numbers for key, numbers in lines.items() if len(numbers) > 1}
    if not twice:
        return
    shown = [
        f"{name!r} of {dataset!r} by {model!r} in lines {', '.join(map(str, numbers))}"
        for (model, dataset, name, *_), numbers in list(twice.items())[:SHOWN]
    ]
    more = f"; and {len(twice) - SHOWN} more" if len(twice) > SHOWN else ""
    raise Mismatch(
        f"{path} has more than one answer to {len(twice)} utterances, which would be scored more "
        f"than once: {'; '.join(shown)}{more}.",
        "Remove all but one of each, or decode again into another file.",
    )


def check_made_alike(path: Path, known: Sequence[KnownHypothesis]) -> None:
    """Check that a model's lines were made by one run's settings, and that all models heard the same.

    Raises:
        Mismatch: a model's lines are of several weights or settings, or models had other audio,
            references or speakers under one id; a score would be of no one system, or a paired
            test of no pairs.
    """
    makers: dict[tuple[str, str], KnownHypothesis] = {}
    asked: dict[tuple[str, ...], KnownHypothesis] = {}
    for found in known:
        row = found.row
        first = makers.setdefault((row.model, row.dataset), found)
        if found.made_by != first.made_by:
            raise Mismatch(
                f"{path} holds hypotheses of {row.model!r} on {row.dataset!r} that were made in two "
                f"ways (lines {first.line} and {found.line}): "
                f"{_changed(first.made_by, found.made_by)}.",
                "Score each in a file of its own, under names of their own.",
            )
        first = asked.setdefault((row.dataset, row.id, row.language, row.task), found)
        for what, ours, theirs in (
            ("reference", row.reference, first.row.reference),
            ("speaker", row.speaker, first.row.speaker),
            ("audio", found.heard, first.heard),
        ):
            if ours != theirs:
                raise Mismatch(
                    f"{path} has another {what} for {row.id!r} of {row.dataset!r} in line "
                    f"{found.line} than in line {first.line}.",
                    "Score files of different data apart, or name the data sets apart.",
                )


TYPES = {  # of a line of hypotheses; the rest are strings
    "seconds": (int, float), "speaker": (str, NoneType), "cut": (bool, NoneType), "of": (int,),
    "source_text": (str, NoneType),
}  # fmt: skip


def _check_types(row: Mapping[str, object]) -> None:
    """Raise ValueError for a value that no run writes."""
    for key, value in row.items():
        if type(value) not in TYPES.get(key, (str,)):
            raise ValueError(f"{key} is a {type(value).__name__}")
    if row["task"] not in TASKS:
        raise ValueError(f"the task is {row['task']!r}")


def _drop_cut_line(path: Path) -> None:
    """End a file with its last whole line, so that what is added starts a line of its own.

    Raises:
        OutputFault: it is no file of hypotheses, and may be somebody's own.
    """
    if not path.is_file():
        return
    raise_all(check_hypotheses_begin(path))
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    try:
        parse_json(raw[whole:])
    except ValueError:
        if whole < len(raw):
            os.truncate(path, whole)
    else:  # whole but for its end of line
        with path.open("ab") as file:
            file.write(b"\n")


def write_trn(folder: Path, records: Sequence[Record], *, force: bool) -> list[Path]:
    """References and hypotheses as sclite reads them: `text (speaker-utterance)` lines.

        sclite -r X.ref.trn trn -h X.hyp.trn trn -i rm -o all stdout -e utf-8

    Raises:
        OutputFault: the folder cannot be written.
    """
    written: list[Path] = []
    for record in records:
        parts = (record.model, record.dataset, record.language, record.task)
        stem = re.sub(r"[^\w.+-]+", "_", "-".join(parts))
        for kind in ("ref", "hyp"):
            path = folder / f"{stem}.{kind}.trn"
            if path in written:  # `a b` and `a_b`
                path = folder / f"{stem}-{len(written) // 2 + 1}.{kind}.trn"
            lines = [
                f"{_escape(row.reference if kind == 'ref' else row.hypothesis)} ({_trn_id(row)})\n"
                for row in record.rows
            ]
            with atomic_file(path, force=force) as partial:
                partial.write_text("".join(lines), encoding="utf-8")
            written.append(path)
    return written


def _escape(text: str) -> str:
    """Characters that mean alternatives or comments to sclite."""
    return re.sub(r"[(){}/@;\\]", " ", " ".join(text.split()))


def _trn_id(row: Hypothesis) -> str:
    speaker, name = (re.sub(r"[^\w.]+", "_", part) for part in (row.speaker or row.id, row.id))
    return f"{speaker}-{name}"


def by_group(rows: Iterable[Hypothesis]) -> Mapping[tuple[str, str, str, str], list[Hypothesis]]:
    """(model, dataset, language, task) -> its hypotheses, in order of appearance."""
    groups: dict[tuple[str, str, str, str], list[Hypothesis]] = {}
    for row in rows:
        groups.setdefault((row.model, row.dataset, row.language, row.task), []).append(row)
    return groups
