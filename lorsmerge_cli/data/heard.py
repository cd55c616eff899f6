"""What is said in a recording, and when."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A word and when it is said.

    Attributes:
        word: with the space before it and the punctuation at it.
        start, end: seconds from the start of the recording.
        probability: mean over its tokens.
    """

    word: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True)
class HeardSegment:
    """A piece of a recording's text, and what the decoder knew of it.

    Attributes:
        start, end: seconds from the start of the recording.
        text: as decoded, with its leading space.
        seek: frame at which the window begins in which it was heard.
        tokens: of the text, with timestamps.
        temperature: at which the window was decoded in the end.
        avg_logprob: mean log-probability of the window's tokens.
        compression_ratio: of the window's text, by zlib.
        no_speech_prob: that nothing is said in the window; None if the model cannot tell.
        words: None if they were not asked for.
    """

    start: float
    end: float
    text: str
    seek: int = 0
    tokens: tuple[int, ...] = ()
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 0.0
    no_speech_prob: float | None = None
    words: tuple[Word, ...] | None = None
