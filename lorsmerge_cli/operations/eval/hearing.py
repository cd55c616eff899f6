"""How the utterances of a test set are heard: as clips or as recordings, in a language given or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lorsmerge_cli.data.recording import Recording
from lorsmerge_cli.data.utterance import Answer, Segment, Utterance
from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.metrics.flaws import is_unheard
from lorsmerge_cli.results.records import Hypothesis
from lorsmerge_cli.speech.decoding.clips import DecodingSettings, fitting_batch
from lorsmerge_cli.speech.decoding.sequential import Heard, LongSettings, ToHear, hear
from lorsmerge_cli.speech.engines import Decoder
from lorsmerge_cli.speech.features import Features
from lorsmerge_cli.speech.model import SpeechModel
from lorsmerge_cli.speech.source import ModelSource

AUTO = "auto"  # in place of a language: the one that the model identifies

Keep = Callable[[Utterance, Answer], None]


@dataclass(frozen=True)
class Hearing:
    """How utterances are heard.

    Attributes:
        long: whether of any length, window after window.
        identify: whether in the language that the model identifies, and not in the row's.
        condition: of long ones, whether the text so far is the prompt of the next window.
    """

    long: bool = False
    identify: bool = False
    condition: bool = True

    @classmethod
    def of(cls, long: bool, language: str | None, condition: bool) -> tuple[Hearing, str | None]:
        """Return how rows are heard, and the language of those that do not name theirs.

        Raises:
            UsageFault: there is no window before that of a clip.
        """
        if not (long or condition):
            raise UsageFault("--no-condition has no effect on clips.", "Give --long as well.")
        identify = language == AUTO
        return cls(long, identify, condition), None if identify else language

    def longest(self, models: Sequence[ModelSource]) -> float:
        """Return the seconds up to which rows are used: all, or those that fit into every window."""
        return math.inf if self.long else min(model.window for model in models)

    def settings(self, speech: SpeechModel, decoding: DecodingSettings) -> LongSettings:
        """Return the settings of long recordings, for a model with timestamps or without."""
        timed = speech.timestamps is not None
        return LongSettings(
            decoding.beam, condition=self.condition, timestamps=timed, max_tokens=decoding.max_tokens,
            batch_size=decoding.batch_size,
        )  # fmt: skip

    def signature(self, speech: SpeechModel, decoding: DecodingSettings) -> str:
        """Return what texts depend on beside `DecodingSettings`; nothing for clips as they are."""
        long = f"|long:{self._long(speech, decoding)}" if self.long else ""
        return f"{long}|language:{AUTO}" if self.identify else long

    def about(self, speech: SpeechModel, decoding: DecodingSettings) -> dict[str, Any]:
        """Return the entries of the decoding settings in the results."""
        found: dict[str, Any] = {"language": AUTO} if self.identify else {}
        return found | ({"long": self._long(speech, decoding)} if self.long else {})

    def _long(self, speech: SpeechModel, decoding: DecodingSettings) -> str:
        found = asdict(self.settings(speech, decoding))
        for name in ("beam", "max_tokens", "batch_size", "words"):
            del found[name]  # recorded already, or of no effect on a text
        found["temperatures"] = ",".join(f"{value:g}" for value in found["temperatures"])
        return " ".join(f"{name}:{value}" for name, value in found.items())

    def warnings(self, models: Sequence[ModelSource]) -> list[str]:
        """Return a warning of each model that has no timestamps to move by."""
        if not self.long:
            return []
        return [
            f"{model.name} has no timestamps in its vocabulary: recordings are cut every "
            f"{model.window:g} s, and words there may be lost."
            for model in models
            if model.without_weights.timestamps is None
        ]

    def unheard(self, rows: Sequence[Hypothesis]) -> list[str]:
        """Return a warning of each model that gave most windows of some recordings no text."""
        silent: dict[str, list[tuple[int, int]]] = {}
        for row in rows:
            if row.unheard and is_unheard(row):
                silent.setdefault(row.model, []).append(row.unheard)
        advice = (
            "Try --no-condition: the text so far may silence a model that was trained without."
            if self.condition
            else "transcribe --no-speech inf tells whether the model takes them for silent."
        )
        return [
            f"{model}: {sum(without for without, _ in found)} of {sum(of for _, of in found)} windows "
            f"that have sound got no text, in {len(found)} recordings that are mostly without. {advice}"
            for model, found in silent.items()
        ]

    def prepare(self, decoder: Decoder, decoding: DecodingSettings) -> None:
        """Do what a model needs once; recordings are heard with its own lists of tokens."""
        if self.long:
            decoder.ear()
        else:
            decoder.prepare(decoding)

    def answers(
        self,
        decoder: Decoder,
        rows: Sequence[Utterance],
        decoding: DecodingSettings,
        keep: Keep,
        features: Features,
    ) -> dict[str, Answer]:
        """Decode utterances, as `Decoder.answers` does."""
        if self.long:
            return self._heard(decoder, rows, decoding, keep)
        if not self.identify:
            return decoder.answers(rows, decoding, keep, features)
        spoken = _identified(decoder, rows, decoding, features)
        known = {row.id: row for row in rows}
        found: dict[str, Answer] = {}

        def note(row: Utterance, answer: Answer) -> None:
            found[row.id] = answer._replace(language=spoken[row.id])
            keep(known[row.id], found[row.id])

        heard = [replace(row, language=spoken[row.id]) for row in rows]
        decoder.answers(heard, decoding, note, features)
        return found

    def _heard(
        self, decoder: Decoder, rows: Sequence[Utterance], decoding: DecodingSettings, keep: Keep
    ) -> dict[str, Answer]:
        found: dict[str, Answer] = {}
        settings = self.settings(decoder.speech, decoding)
        timed = settings.timestamps

        def note(index: int, heard: Heard) -> None:
            language = heard.language if self.identify else None
            found[rows[index].id] = Answer(
                heard.text, heard.cut > 0, language=language,
                unheard=(heard.unheard, heard.sounding), segments=_segments(heard) if timed else None,
            )  # fmt: skip
            keep(rows[index], found[rows[index].id])

        items = [
            ToHear(
                Recording(row.audio, str(row.audio), start=row.start, duration=row.duration),
                None if self.identify else row.language,
                row.task,
            )
            for row in rows
        ]
        hear(decoder.speech, items, settings, ear=decoder.ear(), done=note)
        return found


AS_CLIPS = Hearing()


def _segments(heard: Heard) -> tuple[Segment, ...]:
    return tuple(
        Segment(round(each.start, 3), round(each.end, 3), each.text.strip())
        for each in heard.segments
    )


def _identified(
    decoder: Decoder, rows: Sequence[Utterance], decoding: DecodingSettings, features: Features
) -> dict[str, str]:
    """Return utterance id -> the language that the model hears."""
    ear = decoder.ear()
    size = decoding.batch_size or fitting_batch(decoder.speech, 1, decoding.memory)
    spoken: dict[str, str] = {}
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        named = ear.languages(ear.encode(features.of(part)), range(len(part)))
        spoken |= {row.id: language for row, (language, _) in zip(part, named, strict=True)}
    return spoken
