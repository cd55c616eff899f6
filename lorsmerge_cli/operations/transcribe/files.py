"""Transcribe sound files with several models, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorsmerge_cli.data.audio import audio_seconds, ends_early
from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.languages import parse_language, parse_task
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import UnreadableFile, raise_all
from lorsmerge_cli.inputs import FilePath, path_of, several
from lorsmerge_cli.metrics.looping import is_looping
from lorsmerge_cli.speech.decoding import DecodingSettings, decode_answers
from lorsmerge_cli.speech.source import compute_dtype, find_models, parse_speech_dtype


@dataclass(frozen=True)
class Transcript:
    """The text of one model for one file.

    Attributes:
        seconds: of the file, the first `heard` of which the model was given.
        cut: whether the limit of tokens ended the text.
        looping: whether it repeats itself.
        ends_early: whether the file was cut short, so that audio is missing at its end.
    """

    model: str
    audio: Path
    text: str
    seconds: float
    heard: float
    cut: bool | None
    looping: bool
    ends_early: bool

    @property
    def warnings(self) -> list[str]:
        """What the user should know."""
        text = f"{self.model}'s text of {self.audio}"
        window = f"{self.audio} is {self.seconds:.1f} s long; {self.model} transcribes the first {self.heard:g} s"
        cases = {
            f"{self.audio} is truncated: only the part that it holds is transcribed.": self.ends_early,
            f"{window}, its window.": self.heard < self.seconds,
            f"{text} reached the limit of tokens.": self.cut,
            f"{text} repeats itself.": self.looping,
        }
        return [warning for warning, applies in cases.items() if applies]


def transcribe(
    models: Sequence[FilePath] | FilePath,
    audio: Sequence[FilePath] | FilePath,
    *,
    language: str,
    task: str = "asr",
    beam: int = 5,
    dtype: str = "float32",
    device: str = "auto",
    config_dir: FilePath | None = None,
) -> list[Transcript]:
    """Transcribe (or translate) the start of each file, as much as the model's window takes.

    Args:
        models: model folders, files of weights, or Hub ids.
        audio: sound files: wav, flac, mp3 or ogg.
        language: the spoken language, by code or name.
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
    code, kind = parse_language(language), parse_task(task)
    sources = find_models(
        [(str(path), Path(path)) for path in several(models)], config_dir=path_of(config_dir)
    )
    clips = [AudioFile(path) for path in files]
    lengths = [audio_seconds(clip) for clip in clips]
    empty = [path for path, seconds in zip(files, lengths, strict=True) if not seconds]
    raise_all([UnreadableFile(f"{path} holds no samples.", "Record it again.") for path in empty])
    shortened = [ends_early(clip) for clip in clips]
    found = []
    for source in sources:
        speech = source.open(parse_speech_dtype(compute_dtype(dtype, device)), device)
        rows = [
            Utterance(str(number), clip, "", code, kind, min(seconds, speech.window))
            for number, (clip, seconds) in enumerate(zip(clips, lengths, strict=True))
        ]
        answers = decode_answers(speech, rows, DecodingSettings(beam=beam))
        for row, path, seconds, short in zip(rows, files, lengths, shortened, strict=True):
            text, cut, _ = answers[row.id]
            heard = min(seconds, speech.window)
            found.append(
                Transcript(source.name, path, text, seconds, heard, cut, is_looping(text), short)
            )
    return found
