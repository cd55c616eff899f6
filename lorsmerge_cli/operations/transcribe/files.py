"""Transcribe sound files with several models, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorsmerge_cli.data.audio import audio_seconds, ends_early
from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.languages import parse_language, parse_task
from lorsmerge_cli.data.recording import open_recording
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import UnreadableFile, raise_all
from lorsmerge_cli.inputs import FilePath, path_of, several
from lorsmerge_cli.metrics.looping import MOST_COMPRESSED, is_looping
from lorsmerge_cli.speech.decoding.clips import DecodingSettings, decode_answers, encode
from lorsmerge_cli.speech.decoding.identification import identify_languages
from lorsmerge_cli.speech.decoding.sequential import LongSettings, ToHear, hear
from lorsmerge_cli.speech.model import SpeechModel, audio_of
from lorsmerge_cli.speech.source import compute_dtype, find_models, parse_speech_dtype


@dataclass(frozen=True)
class Transcript:
    """The text of one model for one file.

    Attributes:
        seconds: of the file, the first `heard` of which the model was given.
        cut: whether the limit of tokens ended the text, or that of a window of it.
        looping: whether it repeats itself.
        ends_early: whether the file was cut short, so that audio is missing at its end.
        language: code of the spoken one.
        untimed: seconds of the windows that a long file was cut into, as the model's vocabulary has
            no timestamps to move them by; None for any other.
        sounding: windows of a long file that have sound.
        unheard: of these, those that got no text.
    """

    model: str
    audio: Path
    text: str
    seconds: float
    heard: float
    cut: bool | None
    looping: bool
    ends_early: bool
    language: str = ""
    untimed: float | None = None
    sounding: int = 0
    unheard: int = 0

    @property
    def warnings(self) -> list[str]:
        """What the user should know."""
        text = f"{self.model}'s text of {self.audio}"
        windows = f"{self.model} has no timestamps in its vocabulary: {self.audio}, {self.seconds:.1f} s long, is cut every {self.untimed or 0:g} s"
        cases = {
            f"{self.audio} is truncated: only the part that it holds is transcribed.": self.ends_early,
            f"{windows}, and words there may be lost.": self.untimed is not None,
            f"{text} reached the limit of tokens.": self.cut,
            f"{text} repeats itself.": self.looping,
            f"{text} lacks {self.unheard} of {self.sounding} windows that have sound. Try -o FILE with "
            "--no-condition, or with --no-speech inf.": 2 * self.unheard > self.sounding,
        }
        return [warning for warning, applies in cases.items() if applies]


def transcribe(
    models: Sequence[FilePath] | FilePath,
    audio: Sequence[FilePath] | FilePath,
    *,
    language: str | None = None,
    task: str = "asr",
    beam: int = 5,
    dtype: str = "float32",
    device: str = "auto",
    config_dir: FilePath | None = None,
) -> list[Transcript]:
    """Transcribe (or translate) files with several models, whose texts are returned.

    A file that is no longer than the model's window is decoded as `evaluate` does it, a longer one as
    `transcribe_recordings` does by default.

    Args:
        models: model folders, files of weights, or Hub ids.
        audio: sound files: wav, flac, mp3 or ogg.
        language: the spoken language, by code or name; each model identifies it by default.
        task: `asr`, or `st` for a translation into English.
        beam: hypotheses kept in the search; 1 is greedy.
        dtype: the models compute in: `float32`, `float16`, `bfloat16`, or `auto` for float16 on CUDA.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        config_dir: model folder or Hub id to take config and tokenizer from, for a bare file.

    Returns:
        One transcript for each model and file, the files of the first model first.

    Raises:
        LorsmergeError: see the subclasses.

    Example:
        >>> (found,) = transcribe("base", "clip.wav", language="ca")
        >>> found.model, found.seconds, len(found.text) > 0
        ('base', 1.5, True)
    """
    files = [Path(path) for path in several(audio)]
    code, kind = parse_language(language) if language else None, parse_task(task)
    sources = find_models(
        [(str(path), Path(path)) for path in several(models)], config_dir=path_of(config_dir)
    )
    clips = [AudioFile(path) for path in files]
    lengths = [audio_seconds(clip) for clip in clips]
    empty = [path for path, seconds in zip(files, lengths, strict=True) if not seconds]
    raise_all([UnreadableFile(f"{path} holds no samples.", "Record it again.") for path in empty])
    found = []
    for source in sources:
        speech = source.open(parse_speech_dtype(compute_dtype(dtype, device)), device)
        rows = [
            Utterance(str(number), clip, "", code or "", kind, seconds)
            for number, (clip, seconds) in enumerate(zip(clips, lengths, strict=True))
        ]
        texts = _short(speech, [row for row in rows if _seconds(row) <= speech.window], beam)
        texts |= _long(speech, [row for row in rows if _seconds(row) > speech.window], beam)
        found += [texts[row.id] for row in rows]
    return found


def _seconds(row: Utterance) -> float:
    return row.duration or 0.0


def _short(speech: SpeechModel, rows: Sequence[Utterance], beam: int) -> dict[str, Transcript]:
    """Return the texts of files that fit into the model's window."""
    known = [
        row if row.language else replace(row, language=_identified(speech, row)) for row in rows
    ]
    answers = decode_answers(speech, known, DecodingSettings(beam=beam))
    return {
        row.id: _transcript(speech, row, answers[row.id].text, answers[row.id].cut, row.language)
        for row in known
    }


def _identified(speech: SpeechModel, row: Utterance) -> str:
    ((language, _),) = identify_languages(speech, encode(speech, speech.features([audio_of(row)])))
    return language


def _long(speech: SpeechModel, rows: Sequence[Utterance], beam: int) -> dict[str, Transcript]:
    """Return the texts of files that are longer than the model's window."""
    timed = speech.timestamps is not None
    recordings = [
        ToHear(open_recording(row.audio.file), row.language or None, row.task) for row in rows
    ]
    heard = hear(speech, recordings, LongSettings(beam=beam, timestamps=timed))
    untimed = None if timed else speech.window
    return {
        row.id: replace(
            _transcript(speech, row, found.text, found.cut > 0, found.language),
            looping=any(
                part.compression_ratio > MOST_COMPRESSED for part in found.segments
            ),  # of a window
            untimed=untimed,
            sounding=found.sounding,
            unheard=found.unheard,
        )
        for row, found in zip(rows, heard, strict=True)
    }


def _transcript(
    speech: SpeechModel, row: Utterance, text: str, cut: bool | None, language: str
) -> Transcript:
    seconds = _seconds(row)
    return Transcript(
        speech.name, row.audio.file, text, seconds, seconds, cut, is_looping(text),
        ends_early(row.audio), language,
    )  # fmt: skip
