"""Files of `eval` beside its results: hypotheses, and sclite's transcripts."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from lorsmerge_cli.data.utterance import Answer, Utterance
from lorsmerge_cli.errors import Mismatch, OutputFault, UnreadableFile, raise_all
from lorsmerge_cli.inputs import json_object, open_regular, parse_json
from lorsmerge_cli.outputs import atomic_file, note_grown
from lorsmerge_cli.results.beginning import check_hypotheses_begin
from lorsmerge_cli.results.records import IF_HEARD, Hypothesis, Record
from lorsmerge_cli.results.shapes import check_line

MIDDLE = 4096  # bytes of an audio file that its digest is of
SHOWN = 3  # repeated utterances in an error


class HypothesesFile:
    """JSON lines that grow while models are decoded, and from which a run resumes.

    Every line says which weights and decoding settings made it; lines of others are an error,
    so that a table never mixes them.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._mended = False
        self._known: list[KnownHypothesis] = []
        self._sizes: dict[str, int] = {}  # data set -> its utterances, those of all shards
        if path is not None and path.is_file():
            self._known = read_hypotheses(path)

    def known(
        self,
        model: str,
        dataset: str,
        made_by: str,
        utterances: Sequence[Utterance],
        of: int | None = None,
    ) -> dict[str, Answer]:
        """Return utterance id -> the answer of an earlier run.

        Args:
            model: its name.
            dataset: its name.
            made_by: weights and decoding settings.
            utterances: that are asked for.
            of: how many utterances the data set has; as many by default.

        Raises:
            Mismatch: they were made by other weights or settings, or of other audio.
        """
        answers = {}
        self._sizes[dataset] = len(utterances) if of is None else of
        asked = {(row.id, row.language, row.task): row for row in utterances}
        for row, its_maker, its_audio, *_ in self._known:
            utterance = asked.get((row.id, row.language, row.task))
            if (row.model, row.dataset) != (model, dataset) or utterance is None:
                continue
            if its_audio != audio_digest(utterance):
                raise Mismatch(
                    f"{self.path} has an answer of {model!r} to other audio than {utterance.audio}, "
                    f"under the same name: {row.id!r} of {dataset!r}.",
                    "Give another --hypotheses file, or name the test set with --data NAME=PATH.",
                )
            if its_maker != made_by:
                raise Mismatch(
                    f"{self.path} holds hypotheses of {model!r} on {dataset!r} that were made "
                    f"differently: {_changed(its_maker, made_by)}.",
                    "Give another --hypotheses file, or remove this one.",
                )
            answers[row.id] = Answer(
                row.hypothesis,
                row.cut,
                language=row.identified,
                unheard=row.unheard,
                segments=row.heard_segments,
            )
        return answers

    def add(self, hypotheses: Iterable[tuple[Hypothesis, Utterance]], made_by: str) -> None:
        """Append hypotheses of utterances.

        Raises:
            OutputFault: the file cannot be written, or is no file of hypotheses.
        """
        lines = [
            {
                key: value
                for key, value in asdict(row).items()
                if key not in IF_HEARD or value is not None
            }
            | {
                "made_by": made_by,
                "heard": audio_digest(utterance),
                "of": self._sizes.get(row.dataset, 0),
            }
            for row, utterance in hypotheses
        ]
        self._write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def begin(self) -> None:
        """Make the file, empty where it is new: the ninth of ten parts of eight utterances.

        Raises:
            OutputFault: as `add`.
        """
        self._write("")

    def _write(self, text: str) -> None:
        if self.path is None:
            return
        try:
            first = not self._mended
            if first:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                _drop_cut_line(self.path)
                self._mended = True
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(text)
            if first:
                note_grown(self.path)
        except OSError as error:
            raise OutputFault(
                f"{self.path} cannot be written ({error.strerror}).", "Choose another file."
            ) from None


def _changed(before: str, now: str) -> str:
    """Return what differs between two makers, each `weights|setting:value|...`."""
    (weights, *old), (others, *new) = before.split("|"), now.split("|")
    parts = [f"{a}, now {b}" for a, b in zip(old, new, strict=False) if a != b]
    return "; ".join(["by other weights"] * (weights != others) + parts)


def audio_digest(utterance: Utterance) -> str:
    """Return a digest of an utterance's audio: offset and duration, size and middle bytes."""
    piece = f"{utterance.start:.3f}+{utterance.duration or 0.0:.3f}"
    try:
        with utterance.audio.open() as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MIDDLE) // 2)
            middle = file.read(MIDDLE)
    except (OSError, UnreadableFile):  # decoding reports it
        return piece
    return f"{piece}:{size}:{hashlib.sha256(middle).hexdigest()[:12]}"


class KnownHypothesis(NamedTuple):
    """A line of a file of hypotheses.

    Attributes:
        row: the hypothesis.
        made_by: weights and decoding settings.
        audio: digest of the audio.
        of: utterances of the data set; 0 where an older version did not record it.
        line: where it is: a number from 1 on, behind the file's name where there are several.
    """

    row: Hypothesis
    made_by: str
    audio: str
    of: int
    line: str

    @property
    def identity(self) -> str:
        """The digest of the model's weights; empty where it is not known."""
        return self.made_by.partition("|")[0]

    @property
    def decoding(self) -> str:
        """The settings of the decoding, in one line; empty where they are not known."""
        return self.made_by.partition("|")[2]


def read_hypotheses(path: Path, named: bool = False) -> list[KnownHypothesis]:
    """Read a file of hypotheses; a last line that a kill cut short is skipped.

    Args:
        path: of the file.
        named: whether lines are called by the file's name, too.

    Raises:
        UnreadableFile: the file cannot be read, or has another line that is no hypothesis.
    """
    try:
        with open_regular(path) as file:
            lines = file.read().split(b"\n")  # str.splitlines also splits inside of texts
    except OSError as error:
        raise UnreadableFile(f"{path} cannot be read ({error}).", "Check the path.") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json_object(line)
            check_line(row)
            hypothesis = Hypothesis.of(row)
            about = row.get("made_by", ""), row.get("heard", ""), row.get("of", 0)
            place = f"{path.name}:{number}" if named else str(number)
            found.append(KnownHypothesis(hypothesis, *about, place))
        except (ValueError, KeyError, AttributeError, TypeError):
            if number == len(lines):
                continue
            raise UnreadableFile(
                f"{path}, line {number} is no hypothesis.",
                "Give a file that `eval --hypotheses` wrote.",
            ) from None
    return found


def finished_sets(path: str, known: Sequence[KnownHypothesis]) -> dict[str, tuple[int, int]]:
    """Check that every model of a file of hypotheses answered the same utterances.

    Returns:
        Data set -> utterances answered, and those that it has.

    Raises:
        Mismatch: models answered different utterances, as when a run was interrupted.
    """
    answered: dict[str, dict[str, set[tuple[str, str, str]]]] = {}
    sizes: dict[str, int] = {}
    for row, _, _, of, _ in known:
        ids = answered.setdefault(row.dataset, {}).setdefault(row.model, set())
        ids.add((row.id, row.language, row.task))
        sizes[row.dataset] = max(sizes.get(row.dataset, 0), of)
    found = {}
    for dataset, models in answered.items():
        every = set.union(*models.values())
        size = max(sizes[dataset], len(every))
        found[dataset] = len(every), size
        if any(ids != every for ids in models.values()):
            counts = (f"{model} {len(ids)} of {size}" for model, ids in models.items())
            raise Mismatch(
                f"{path} is unfinished: its models answered different utterances of {dataset!r}: "
                f"{', '.join(counts)}.",
                "Finish it first: run the command that made it again, without --score-only.",
            )
    return found


def check_answered_once(path: str, known: Sequence[KnownHypothesis]) -> None:
    """Check that no model of a file of hypotheses answered an utterance twice.

    Raises:
        Mismatch: one did; the message names the lines. Both answers would be scored.
    """
    lines: dict[tuple[str, ...], list[str]] = {}
    for row, _, _, _, line in known:
        key = (row.model, row.dataset, row.id, row.language, row.task)
        lines.setdefault(key, []).append(line)
    twice = {key: numbers for key, numbers in lines.items() if len(numbers) > 1}
    if not twice:
        return
    shown = [
        f"{name!r} of {dataset!r} by {model!r} in lines {', '.join(numbers)}"
        for (model, dataset, name, *_), numbers in list(twice.items())[:SHOWN]
    ]
    more = f"; and {len(twice) - SHOWN} more" if len(twice) > SHOWN else ""
    raise Mismatch(
        f"{path} has more than one answer to {len(twice)} utterances, which would be scored more "
        f"than once: {'; '.join(shown)}{more}.",
        "Remove all but one of each, or decode again into another file.",
    )


def check_made_alike(path: str, known: Sequence[KnownHypothesis]) -> None:
    """Check that a model's lines have one maker, and that all models had the same utterances.

    Raises:
        Mismatch: a model's lines are of several weights or settings, or models had other audio,
            references or speakers under one id. The score would mix systems, or a paired test
            would compare different utterances.
    """
    makers: dict[tuple[str, str], KnownHypothesis] = {}
    asked: dict[tuple[str, ...], KnownHypothesis] = {}
    for line in known:
        row = line.row
        first = makers.setdefault((row.model, row.dataset), line)
        if line.made_by != first.made_by:
            raise Mismatch(
                f"{path} holds hypotheses of {row.model!r} on {row.dataset!r} that were made in two "
                f"ways (lines {first.line} and {line.line}): "
                f"{_changed(first.made_by, line.made_by)}.",
                "Score each in a file of its own, under another name.",
            )
        first = asked.setdefault((row.dataset, row.id, row.language, row.task), line)
        for what, ours, theirs in (
            ("reference", row.reference, first.row.reference),
            ("speaker", row.speaker, first.row.speaker),
            ("audio", line.audio, first.audio),
        ):
            if ours != theirs:
                raise Mismatch(
                    f"{path} has another {what} for {row.id!r} of {row.dataset!r} in line "
                    f"{line.line} than in line {first.line}.",
                    "Score different data in separate files, or give the data sets different names.",
                )


def _drop_cut_line(path: Path) -> None:
    """Truncate a file after its last whole line, so that an addition starts a new line.

    Raises:
        OutputFault: it is no file of hypotheses, but one of the user's own.
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
    else:  # whole except for its line end
        with path.open("ab") as file:
            file.write(b"\n")


def write_trn(folder: Path, records: Sequence[Record], *, force: bool) -> list[Path]:
    """Write references and hypotheses for sclite, as `text (speaker-utterance)` lines.

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
    """Replace characters that mark alternatives or comments to sclite."""
    return re.sub(r"[(){}/@;\\]", " ", " ".join(text.split()))


def _trn_id(row: Hypothesis) -> str:
    speaker, name = (re.sub(r"[^\w.]+", "_", part) for part in (row.speaker or row.id, row.id))
    return f"{speaker}-{name}"


def by_group(rows: Iterable[Hypothesis]) -> Mapping[tuple[str, str, str, str], list[Hypothesis]]:
    """Return (model, dataset, language, task) -> hypotheses, in order of appearance."""
    groups: dict[tuple[str, str, str, str], list[Hypothesis]] = {}
    for row in rows:
        groups.setdefault((row.model, row.dataset, row.language, row.task), []).append(row)
    return groups
