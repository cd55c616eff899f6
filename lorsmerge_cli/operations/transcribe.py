"""What models hear in sound files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorsmerge_cli.data.audio import audio_seconds
from lorsmerge_cli.data.languages import parse_language, parse_task
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import UnreadableFile, raise_all
from lorsmerge_cli.metrics.looping import is_looping
from lorsmerge_cli.speech.decoding import DecodingSettings, decode_answers
from lorsmerge_cli.speech.source import ModelSource, parse_speech_dtype


@dataclass(frozen=True)
class Transcript:
    """What one model heard in one file.

    Attributes:
        seconds: of the file, the first `heard` of which the model was given.
        cut: whether the limit of tokens ended the text.
        looping: whether it repeats itself.
    """

    model: str
    audio: Path
    text: str
    seconds: float
    heard: float
    cut: bool | None
    looping: bool


def transcribe(
    models: Sequence[ModelSource],
    files: Sequence[Path],
    *,
    language: str,
    task: str,
    beam: int,
    dtype: str,
    device: str,
) -> list[Transcript]:
    """Transcribe (or translate) the start of each file, as much as the model's window takes.

    Raises:
        LorsmergeError: see the subclasses.
    """
    code, kind = parse_language(language), parse_task(task)
    lengths = [audio_seconds(path) for path in files]
    empty = [path for path, seconds in zip(files, lengths, strict=True) if not seconds]
    raise_all([UnreadableFile(f"{path} holds no samples.", "Record it again.") for path in empty])
    found = []
    for source in models:
        speech = source.open(parse_speech_dtype(dtype), device)
        rows = [
            Utterance(str(number), path, "", code, kind, min(seconds, speech.window))
            for number, (path, seconds) in enumerate(zip(files, lengths, strict=True))
        ]
        answers = decode_answers(speech, rows, DecodingSettings(beam=beam))
        for row, path, seconds in zip(rows, files, lengths, strict=True):
            text, cut = answers[row.id]
            heard = min(seconds, speech.window)
            found.append(Transcript(source.name, path, text, seconds, heard, cut, is_looping(text)))
    return found
