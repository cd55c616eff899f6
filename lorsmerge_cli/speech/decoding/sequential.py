"""Recordings of any length, heard window after window (Radford et al. 2022, 4.5).

The algorithm is that of openai-whisper 20250625: a window begins where the last one's timestamps say
that its last whole segment ended, a text that fails is decoded again at higher temperatures, a window
in which nothing is said is skipped, and the text so far is the next window's prompt.

transformers has it too. It is not used: it needs the features of a whole file at once, it takes the
compression ratio of token numbers where OpenAI takes the text's, and it has no `best_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lorsmerge_cli.data.audio import RATE, UnreadableAudio
from lorsmerge_cli.data.heard import HeardSegment, Word
from lorsmerge_cli.data.recording import Recording
from lorsmerge_cli.errors import LorsmergeError, UsageFault, raise_all
from lorsmerge_cli.metrics.looping import MOST_COMPRESSED, compression_ratio
from lorsmerge_cli.speech.decoding.alignment import align_words, need_alignment
from lorsmerge_cli.speech.decoding.clips import DecodingSettings, fitting_batch
from lorsmerge_cli.speech.decoding.ear import Ear, Search, TorchEar
from lorsmerge_cli.speech.decoding.timestamps import Rules, need_timestamps
from lorsmerge_cli.speech.decoding.window_search import Found
from lorsmerge_cli.speech.decoding.windows import Length, Spectrogram, Windows
from lorsmerge_cli.speech.model import SpeechModel

TOO_RANDOM = 0.5  # temperature above which a text is no prompt for the next
# decades (10 dB each) below its recording's loudest sound, from where on a window has none
QUIET = 3.0
NOTHING = -7.0  # log10 of a mel value that no speech is below: rounding of 16-bit samples, say


@dataclass(frozen=True)
class LongSettings:
    """How recordings are heard; the defaults are those of openai-whisper's command.

    Attributes:
        beam: hypotheses of the search at temperature 0; 1 is greedy.
        best_of: samples at higher temperatures, of which the likeliest is taken.
        temperatures: tried one after the other until a text passes.
        compression_ratio: a text that zlib compresses more fails.
        logprob: a text whose mean log-probability is below fails.
        no_speech: a window whose `<|nospeech|>` is likelier, and whose text fails by its
            log-probability, is silent.
        condition: whether the text so far is the prompt of the next window.
        timestamps: whether windows are moved by predicted timestamps; otherwise each is a segment.
        max_tokens: of a window's text; by default half of the decoder's positions.
        seed: of the samples, which depend on it, the window and the temperature.
        batch_size: recordings heard at a time; None for what memory allows.
        words: whether each word gets times of its own.

    Raises:
        UsageFault: a number that is out of its range.
    """

    beam: int = 5
    best_of: int = 5
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio: float = MOST_COMPRESSED
    logprob: float = -1.0
    no_speech: float = 0.6
    condition: bool = True
    timestamps: bool = True
    max_tokens: int | None = None
    seed: int = 0
    batch_size: int | None = field(default=None, compare=False)
    words: bool = False

    def __post_init__(self) -> None:
        for name in ("beam", "best_of", "max_tokens", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageFault(f"{name} = {value} is not a whole number from 1 on.")
        if not self.temperatures or not all(0 <= t < torch.inf for t in self.temperatures):
            raise UsageFault(
                f"temperatures = {list(self.temperatures)} are not numbers from 0 on.",
                "Give at least one; 0 takes the likeliest tokens.",
            )
        for name in ("compression_ratio", "logprob", "no_speech"):
            if getattr(self, name) != getattr(self, name):
                raise UsageFault(f"{name} = nan is no threshold.", "Give inf or -inf for none.")


@dataclass(frozen=True)
class Heard:
    """What was heard in a recording.

    Attributes:
        language: code of the spoken one.
        probability: of the language; None if it was given.
        seconds: of the recording.
        segments: in order.
        failed: windows whose text failed at every temperature.
        cut: windows whose text reached the limit of tokens.
        skipped: windows in which nothing was said.
        windows: in all.
        sounding: windows that have sound: not 30 dB below the loudest of the recording.
        unheard: of these, those that got no text.
    """

    language: str
    probability: float | None
    seconds: float
    segments: tuple[HeardSegment, ...]
    failed: int = 0
    cut: int = 0
    skipped: int = 0
    windows: int = 0
    sounding: int = 0
    unheard: int = 0

    @property
    def text(self) -> str:
        """The text of all segments."""
        return "".join(segment.text for segment in self.segments).strip()


@dataclass
class _Listening:
    """A recording that is being heard."""

    key: int
    windows: Windows
    length: Length
    language: str | None
    task: str
    probability: float | None = None
    seek: int = 0
    segments: list[HeardSegment] = field(default_factory=list)
    said: list[int] = field(default_factory=list)
    failed: int = 0
    cut: int = 0
    skipped: int = 0
    count: int = 0
    sounding: int = 0
    unheard: int = 0

    def result(self) -> Heard:
        assert self.language is not None
        return Heard(
            self.language, self.probability, self.length.seconds, tuple(self.segments), self.failed,
            self.cut, self.skipped, self.count, self.sounding, self.unheard,
        )  # fmt: skip


@dataclass(frozen=True)
class _Text:
    """The text of a window that was taken."""

    found: Found
    text: str
    temperature: float
    compression: float
    passed: bool


@dataclass(frozen=True)
class ToHear:
    """A recording, and what is known of it.

    Attributes:
        recording: the audio.
        language: code of the spoken one; None to have it identified by the first window.
        task: `asr` or `st`.
    """

    recording: Recording
    language: str | None = None
    task: str = "asr"


def hear(
    speech: SpeechModel,
    recordings: Sequence[ToHear],
    settings: LongSettings,
    *,
    ear: Ear | None = None,
    done: Callable[[int, Heard], None] = lambda index, heard: None,
    progress: Callable[[float], None] = lambda seconds: None,
) -> list[Heard]:
    """Hear recordings from start to end, several at a time.

    Args:
        speech: the model, on its device.
        recordings: in the order of the result.
        settings: of the search.
        ear: the engine that has its weights; PyTorch by default, which words need.
        done: called with the index of a recording and what was heard, when it has ended.
        progress: called with the seconds of audio just heard.

    Raises:
        UsageFault: the model has no timestamps, or lacks a language or task.
        UnreadableAudio: a recording cannot be decoded; it is raised when the others were heard.
    """
    listener = _Listener(speech, settings, ear or TorchEar(speech))
    for item in recordings:
        if item.language is not None:
            speech.prompt(item.language, item.task)
    size = settings.batch_size or fitting_batch(speech, max(settings.beam, settings.best_of))
    waiting = list(enumerate(recordings))[::-1]
    active: list[_Listening] = []
    found: dict[int, Heard] = {}
    faults: list[LorsmergeError] = []
    while waiting or active:
        while waiting and len(active) < size:
            try:
                active.append(listener.begin(*waiting.pop()))
            except UnreadableAudio as fault:  # the others are heard first
                faults.append(fault)
        before = {each.key: each.seek for each in active}
        listener.hear_windows([each for each in active if each.seek < each.windows.frames])
        hop = listener.spectrogram.hop
        for each in active:
            moved = min(each.seek, each.windows.frames) - before[each.key]
            progress(moved * hop / each.length.samples * each.length.seconds)
            if each.seek >= each.windows.frames:
                found[each.key] = each.result()
                done(each.key, found[each.key])
        active = [each for each in active if each.key not in found]
    raise_all(faults)
    return [found[index] for index in range(len(recordings))]


class _Listener:
    """A model, its rules and its features."""

    def __init__(self, speech: SpeechModel, settings: LongSettings, ear: Ear) -> None:
        self.speech, self.settings, self.ear = speech, settings, ear
        self.spectrogram = Spectrogram(speech)
        self.times = need_timestamps(speech) if settings.timestamps else speech.timestamps
        self.timestamps = self.times if settings.timestamps else None
        if settings.words:
            need_alignment(speech)
        config = speech.model.config
        self.positions = int(config.max_source_positions)
        self.frames_a_step = self.spectrogram.frames // self.positions
        self.half = int(config.max_target_positions) // 2
        self.most = settings.max_tokens or self.half
        lists = DecodingSettings().with_lists_of(speech)
        end = int(config.eos_token_id)
        # languages as well, which OpenAI's code lets through
        never = {token for token in speech.control if token not in (self.times or ())} - {end}
        self.rules = Rules(
            int(config.vocab_size), end, sorted({*speech.known(lists.suppress), *never}),
            speech.known(lists.begin_suppress), self.timestamps,
        )  # fmt: skip

    def begin(self, key: int, item: ToHear) -> _Listening:
        """Open a recording, and decode it once for its length."""
        length = self.spectrogram.length(item.recording)
        if not length.samples:
            raise UnreadableAudio(
                f"{item.recording.name} has no samples that can be decoded.", "Make the file again."
            )
        windows = Windows(self.spectrogram, item.recording, length)
        return _Listening(key, windows, length, item.language, item.task)

    def hear_windows(self, active: Sequence[_Listening]) -> None:
        """Hear one window of each recording, and move it on."""
        if not active:
            return
        features = torch.stack([each.windows.at(each.seek) for each in active])
        heard = self.ear.encode(features)
        unknown = [row for row, each in enumerate(active) if each.language is None]
        if unknown:
            named = self.ear.languages(heard, unknown)
            for row, (language, probability) in zip(unknown, named, strict=True):
                active[row].language, active[row].probability = language, probability
        texts = self.with_fallback(heard, active)
        for row, (each, text) in enumerate(zip(active, texts, strict=True)):
            before = len(each.segments)
            self.take(each, text, heard[row : row + 1] if self.settings.words else None)
            loudest = float(features[row].max()) * 4.0 - 4.0
            if loudest > max(each.length.loudest - QUIET, NOTHING):
                each.sounding += 1
                each.unheard += len(each.segments) == before

    def with_fallback(self, heard: Any, active: Sequence[_Listening]) -> list[_Text]:
        """Return the text of each window at the first temperature at which it passes."""
        settings = self.settings
        prompts = [self.prompt(each) for each in active]
        texts: dict[int, _Text] = {}
        left = list(range(len(active)))
        for temperature in settings.temperatures:
            search = Search(
                [prompts[row] for row in left], self.rules,
                settings.best_of if temperature > 0 else settings.beam, temperature, self.most,
                [self.generator(active[row].seek, temperature) for row in left],
            )  # fmt: skip
            found = self.ear.search(heard, left, search)
            for row, one in zip(left, found, strict=True):
                texts[row] = self.judged(one, temperature)
            left = [row for row in left if not texts[row].passed]
            if not left:
                break
        return [texts[row] for row in range(len(active))]

    def generator(self, seek: int, temperature: float) -> torch.Generator:
        """Return the source of a window's samples: the same in any batch and order."""
        seed = (self.settings.seed * 1_000_003 + seek) * 1009 + round(100 * temperature)
        return torch.Generator().manual_seed(seed % (1 << 63))

    def prompt(self, each: _Listening) -> list[int]:
        """Return the text so far, as much as half of the decoder takes, and the window's task."""
        assert each.language is not None
        start = self.speech.prompt(each.language, each.task)
        if self.timestamps is not None:
            start = start[:-1]
        before = each.said[-(self.half - 1) :]
        previous = self.speech.vocabulary.get("<|startofprev|>")
        if not before or previous is None:
            return start
        return [previous, *before, *start]

    def judged(self, found: Found, temperature: float) -> _Text:
        """Return the text of tokens, and whether it passes."""
        text = self.text_of(found.tokens).strip()
        compression = compression_ratio(text)
        unlikely = found.avg_logprob < self.settings.logprob
        failed = unlikely or compression > self.settings.compression_ratio
        if unlikely and self.silent(found):
            failed = False
        return _Text(found, text, temperature, compression, not failed)

    def silent(self, found: Found) -> bool:
        """Return whether nothing is said in a window, by the model."""
        return found.no_speech_prob is not None and found.no_speech_prob > self.settings.no_speech

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without timestamps and control tokens."""
        words = self.words_of(tokens)
        text: str = self.speech.processor.tokenizer.decode(
            words, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def words_of(self, tokens: Sequence[int]) -> list[int]:
        """Return the tokens that are text."""
        times = self.times or ()  # a tokenizer may not list them
        control = self.speech.control
        return [token for token in tokens if token not in control and token not in times]

    def take(self, each: _Listening, text: _Text, heard: Tensor | None) -> None:
        """Keep the segments of a window, and move to where the next one begins.

        Args:
            each: the recording.
            text: of the window.
            heard: [1, positions, width], to find words in; None if they are not wanted.
        """
        each.count += 1
        rest = each.windows.frames - each.seek
        size = min(self.spectrogram.frames, rest)
        if self.silent(text.found) and not text.found.avg_logprob > self.settings.logprob:
            each.skipped += 1
            each.seek += size
            return
        each.failed += not text.passed
        each.cut += text.found.cut
        segments, moved = self.segments(text, size)
        offset = each.seek * self.spectrogram.hop / RATE
        last = each.length.seconds - offset  # the last window is longer than what is left
        kept = [
            replace(
                segment,
                start=offset + segment.start,
                end=offset + min(segment.end, last),
                seek=each.seek,
            )
            for segment in segments
            if segment.start < min(segment.end, last) and segment.text.strip()
        ]
        each.segments += kept if heard is None else self.with_words(kept, each, heard, size)
        each.said += [token for segment in kept for token in segment.tokens]
        if not self.settings.condition or text.temperature > TOO_RANDOM:
            each.said.clear()
        del each.said[: -self.half]
        each.seek += moved

    def segments(self, text: _Text, size: int) -> tuple[list[HeardSegment], int]:
        """Return the segments of a window, in seconds from its start, and the frames to move by.

        Args:
            text: of the window.
            size: frames of the window that belong to the recording.
        """
        tokens, times = text.found.tokens, self.timestamps
        seconds = size * self.spectrogram.hop / RATE
        if times is None:
            return [self.segment(text, tokens, 0.0, seconds)], size
        timed = [token in times for token in tokens]
        ends = [i for i in range(1, len(tokens)) if timed[i - 1] and timed[i]]
        ends_by_time = timed[-2:] == [False, True]
        if not ends:
            last = next((times.steps(t) for t in reversed(tokens) if t in times), 0)
            # without a pair the window is one segment, up to its last time
            return [self.segment(text, tokens, 0.0, last * times.step if last else seconds)], size
        if ends_by_time:
            ends.append(len(tokens))
        segments = []
        for begin, end in pairwise([0, *ends]):
            piece = tokens[begin:end]
            start, stop = (times.steps(token) * times.step for token in (piece[0], piece[-1]))
            segments.append(self.segment(text, piece, start, stop))
        # a single time at the end: nothing is said after it; else the last segment is unfinished
        moved = size if ends_by_time else times.steps(tokens[ends[-1] - 1]) * self.frames_a_step
        return segments, moved

    def with_words(
        self, segments: Sequence[HeardSegment], each: _Listening, heard: Tensor, size: int
    ) -> list[HeardSegment]:
        """Return the segments of a window with the times of their words."""
        assert each.language is not None
        prompt = self.speech.prompt(each.language, each.task)
        texts = [self.words_of(segment.tokens) for segment in segments]
        aligned = align_words(
            self.speech, heard, prompt, [token for text in texts for token in text],
            size // self.frames_a_step, each.language,
        )  # fmt: skip
        step = self.frames_a_step * self.spectrogram.hop / RATE
        offset = each.seek * self.spectrogram.hop / RATE
        found, used, given = [], 0, 0
        for segment, text in zip(segments, texts, strict=True):
            given += len(text)
            words = []
            while aligned and used < given:  # a word goes where its first token is
                word = aligned.pop(0)
                used += word.tokens
                words.append(
                    Word(
                        word.word, offset + word.start * step, offset + word.end * step,
                        word.probability,
                    )
                )  # fmt: skip
            found.append(replace(segment, words=tuple(words)))
        return found

    def segment(self, text: _Text, tokens: Sequence[int], start: float, end: float) -> HeardSegment:
        """Return a segment of a window's text."""
        return HeardSegment(
            start, end, self.text_of(tokens), 0, tuple(tokens), text.temperature,
            text.found.avg_logprob, text.compression, text.found.no_speech_prob,
        )  # fmt: skip
