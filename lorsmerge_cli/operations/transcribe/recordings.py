"""Transcribe whole recordings into files: subtitles, texts, tables."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lorsmerge_cli.data.audio import GUESS
from lorsmerge_cli.data.languages import parse_language, parse_task
from lorsmerge_cli.data.recording import (
    AUDIO,
    Recording,
    files_in,
    kept_on_disk,
    open_recording,
)
from lorsmerge_cli.errors import (
    Interrupted,
    LorsmergeError,
    OutputFault,
    UnreadableFile,
    UsageFault,
    did_you_mean,
    raise_all,
)
from lorsmerge_cli.inputs import FilePath, path_of, several
from lorsmerge_cli.operations.transcribe.made import (
    HEARD,
    EditedError,
    Made,
    audio_digest,
    files_digest,
)
from lorsmerge_cli.outputs import atomic_file, check_output
from lorsmerge_cli.results.transcripts import WRITERS, clock, write_transcript
from lorsmerge_cli.speech.decoding.alignment import need_alignment
from lorsmerge_cli.speech.decoding.sequential import Heard, LongSettings, ToHear, hear
from lorsmerge_cli.speech.decoding.timestamps import need_timestamps
from lorsmerge_cli.speech.engines import DEFAULT, ENGINES, Decoder, check_engine
from lorsmerge_cli.speech.source import ModelSource, find_model

STDIN = Path("-")
MIX, SPLIT = "mix", "split"  # what becomes of the channels of a recording
SIZE = 1 << 20  # bytes of a transcript for which there must be room
# What a text depends on beside the weights
CONFIGS = ("config.json", "generation_config.json")
TOKENIZERS = (
    "tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json",
    "tokenizer_config.json", "normalizer.json", "processor_config.json", "preprocessor_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class RecordingReport:
    """What was heard in one recording, and written.

    Attributes:
        audio: its path; `-` for standard input.
        channel: its number from 1; None for the mean of all.
        language: code of the spoken one.
        probability: of the language; None if it was given.
        seconds: of audio.
        segments: that were written.
        failed, cut, skipped, windows, sounding, unheard: as in `Heard`.
        truncated: whether the file promises more audio than it has, or than can be decoded.
        files: that were written.
        remedies: options that may give a text to the windows that have sound and got none.
    """

    audio: str
    channel: int | None
    language: str
    probability: float | None
    seconds: float
    segments: int
    failed: int
    cut: int
    skipped: int
    windows: int
    truncated: bool
    files: tuple[Path, ...]
    sounding: int = 0
    unheard: int = 0
    remedies: tuple[str, ...] = ()

    @property
    def warnings(self) -> list[str]:
        """What the user should know."""
        end = clock(self.seconds, hours=True, point=".")
        remedies = f" Try {' and '.join(self.remedies)}." if self.remedies else ""
        cases = {
            f"{self.audio} is truncated or damaged: its audio ends at {end}, and what is before that "
            "is transcribed.": self.truncated,
            f"{self.audio}: no speech was found, and its transcript is empty; {self.sounding} of "
            f"{self.windows} windows have sound.{remedies}": not self.segments,
            f"{self.audio}: the text of {self.failed} of {self.windows} windows is unlikely or repeats "
            "itself at every temperature, and is kept as it is.": self.failed > 0,
            f"{self.audio}: the text of {self.cut} of {self.windows} windows reached the limit of "
            "tokens.": self.cut > 0,
            f"{self.audio}: {self.unheard} of {self.sounding} windows that have sound got no text."
            f"{remedies}": self.segments > 0 and 2 * self.unheard > self.sounding,
        }
        return [warning for warning, applies in cases.items() if applies]


@dataclass(frozen=True)
class TranscriptsReport:
    """Transcripts that were written.

    Attributes:
        recordings: in order.
        resumed: recordings that had transcripts already.
        warnings: what the user should know.
    """

    recordings: tuple[RecordingReport, ...]
    resumed: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Item:
    """A recording and the files that its transcript is written into: format -> path."""

    recording: Recording
    targets: Mapping[str, Path]
    about: Mapping[str, str]  # what they depend on
    truncated: bool
    seconds: float


def transcribe_recordings(
    model: FilePath,
    audio: Sequence[FilePath] | FilePath,
    output: FilePath,
    *,
    formats: Sequence[str] | str = (),
    language: str | None = None,
    task: str = "asr",
    beam: int = 5,
    best_of: int = 5,
    temperatures: Sequence[float] = LongSettings().temperatures,
    compression_ratio: float = 2.4,
    logprob: float = -1.0,
    no_speech: float = 0.6,
    condition: bool = True,
    timestamps: bool = True,
    words: bool = False,
    channels: str = MIX,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    engine: str = DEFAULT,
    dtype: str = "float32",
    device: str = "auto",
    config_dir: FilePath | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TranscriptsReport:
    """Transcribe (or translate) recordings of any length, and write each transcript when it is done.

    Windows are moved by the timestamps that the model predicts, as openai-whisper does it, whose
    command has the same defaults.

    Args:
        model: model folder, file of weights or Hub id.
        audio: files (wav, flac, mp3, ogg; others and video by ffmpeg), folders of them, or `-` for
            standard input.
        output: a file whose suffix is one of `formats`, for one recording; else a folder, in which
            each transcript has the name of its recording.
        formats: `txt`, `srt`, `vtt`, `tsv` or `json`; the file's, or in a folder `srt`, by default.
        language: the spoken one, by code or name; identified in each recording by default.
        task: `asr`, or `st` for a translation into English.
        beam: hypotheses in the search at temperature 0; 1 is greedy.
        best_of: samples at higher temperatures, of which the likeliest is taken.
        temperatures: tried in turn until a window's text passes.
        compression_ratio: a text that zlib compresses more than so many times fails.
        logprob: a text whose mean log-probability of a token is below fails.
        no_speech: probability of no speech above which a window with a failing text is silent.
        condition: whether the text so far is the prompt of the next window.
        timestamps: whether timestamps are predicted; otherwise each window becomes a segment.
        words: whether each word gets times of its own, in JSON and for the bounds of subtitles.
        channels: `mix` hears the mean of all, `split` each of them, into a transcript of its own.
        max_tokens: most tokens of a window; half of the decoder's positions by default.
        batch_size: recordings heard at a time; by memory by default.
        seed: of the samples.
        engine: that decodes: `torch`, or `ct2` for CTranslate2, which has no `words`.
        dtype: the model computes in: `float32`, `float16` or `bfloat16`; of `ct2` also `int8`.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        config_dir: model folder or Hub id to take config and tokenizer from, for a bare file.
        resume: skip recordings whose transcripts are made as wanted, by the folder's journal.
        force: replace transcripts that exist, with `resume` those that are made otherwise.
        progress: called with the seconds of audio just heard, and those in all.

    Raises:
        Interrupted: a signal came; transcripts that are done stay.
        LorsmergeError: see the subclasses.

    Example:
        >>> report = transcribe_recordings("base", "clip.wav", "clip.txt", language="ca", timestamps=False)
        >>> report.recordings[0].seconds, report.recordings[0].files
        (1.5, (PosixPath('clip.txt'),))
    """
    settings = LongSettings(
        beam, best_of, tuple(temperatures), compression_ratio, logprob, no_speech, condition,
        timestamps, max_tokens, seed, batch_size, words,
    )  # fmt: skip
    code, kind = parse_language(language) if language else None, parse_task(task)
    given = [Path(path) for path in several(audio)]
    wanted = _formats(Path(output), several(formats))
    raise_all(check_engine(engine, dtype, device))
    source = find_model(Path(model), config_dir=path_of(config_dir))
    _check_model(source, engine, code, kind, settings)
    with ExitStack() as stack:
        held = stack.enter_context(kept_on_disk(sys.stdin.buffer)) if STDIN in given else STDIN
        found = _recordings(given, held, channels)
        used = ENGINES[engine]
        computed = used.dtype(dtype, device)
        made = None if _is_file(Path(output)) else Made(Path(output))
        about = _about(source, used.stamp(computed) or computed, code, kind, settings)
        items, resumed, notes = _plan(
            found, Path(output), wanted, about, made, source.files, resume=resume, force=force
        )
        if not items:
            return TranscriptsReport((), resumed, tuple(notes))
        decoder = used.open(source, computed, device)
        reports = _run(items, decoder, code, kind, settings, made, force, progress)
    told = dict.fromkeys([*notes, *(text for report in reports for text in report.warnings)])
    return TranscriptsReport(tuple(reports), resumed, tuple(told))


def _formats(output: Path, given: Sequence[str]) -> list[str]:
    """Return the formats of the transcripts.

    Raises:
        UsageFault: one is unknown, or the file's suffix says another.
    """
    names = [name.removeprefix(".").lower() for name in given]
    for name in names:
        if name not in WRITERS:
            raise UsageFault(
                f"There is no format {name!r}.{did_you_mean(name, list(WRITERS))}",
                f"Choose of {', '.join(WRITERS)}.",
            )
    if output == STDIN:
        raise UsageFault(
            "-o - would be a folder called `-`, and transcripts are files.",
            "Name a file, such as talk.srt; without -o the text is printed.",
        )
    if _is_file(output):
        suffix = output.suffix.removeprefix(".").lower()
        if suffix not in WRITERS:
            raise UsageFault(
                f"{output} ends like no transcript.{did_you_mean(suffix, list(WRITERS))}",
                f"End it with .{', .'.join(WRITERS)}, or name a folder without a dot.",
            )
        if names and names != [suffix]:
            raise UsageFault(
                f"{output} is a .{suffix}, and {', '.join(names)} is asked for.",
                "Name a folder, which takes several formats.",
            )
        return [suffix]
    return list(dict.fromkeys(names)) or ["srt"]


def _is_file(output: Path) -> bool:
    """Return whether a transcript is written there, and not a folder of them."""
    return bool(output.suffix) and not output.is_dir()


def _about(
    source: ModelSource, engine: str, language: str | None, task: str, settings: LongSettings
) -> dict[str, str]:
    """Return what transcripts depend on beside the audio."""
    found = {name: f"{value}" for name, value in asdict(settings).items() if name != "batch_size"}
    found |= {"engine": engine, "language": language or "identified", "task": task}
    parts = files_digest(source.folder, CONFIGS), files_digest(source.processor, TOKENIZERS)
    return {"weights": source.identity(), "config": "-".join(parts), **found}


def _check_model(
    source: ModelSource, engine: str, language: str | None, task: str, settings: LongSettings
) -> None:
    """Check what config and vocabulary say before the weights are read.

    Raises:
        UsageFault: there is no such language, task or time in it, or the engine has no words.
        Mismatch: the engine would compute another network.
    """
    if settings.words and engine != DEFAULT:
        raise UsageFault(f"--engine {engine} has no --words.", "Use --engine torch.")
    raise_all(ENGINES[engine].unfit(source))
    speech = source.without_weights
    if language is not None:
        speech.prompt(language, task)
    if settings.timestamps:
        need_timestamps(speech)
    if settings.words:
        need_alignment(speech)


def _recordings(given: Sequence[Path], held: Path, channels: str) -> list[tuple[str, Recording]]:
    """Return the recordings to hear, each with the name of its transcripts.

    Raises:
        LorsmergeError: every fault of the files, or there is no such way with channels.
    """
    if channels not in (MIX, SPLIT):
        raise UsageFault(f"There is no way {channels!r} with channels.", "Give mix or split.")
    faults: list[LorsmergeError] = []
    found: list[tuple[str, Recording]] = []
    for path in _expanded(given, faults):
        try:
            is_stdin = path == STDIN
            whole = open_recording(held if is_stdin else path, "standard input" if is_stdin else "")
            found += _by_channel("stdin" if is_stdin else path.stem, whole, channels)
        except LorsmergeError as error:
            faults.append(error)
    raise_all(faults)
    return found


def _check_names(found: Sequence[tuple[str, Recording]], output: Path, format: str) -> None:
    """Check that each recording has transcripts of its own.

    Raises:
        UsageFault: several would be written into one file.
    """
    if _is_file(output):
        if len(found) > 1:
            raise UsageFault(
                f"{output} is one file, for {len(found)} recordings or channels.",
                "Name a folder, which takes a transcript of each.",
            )
        return
    stems = Counter(stem.casefold() for stem, _ in found)
    faults = []
    for stem, count in stems.items():
        if count > 1:
            names = [item.name for one, item in found if one.casefold() == stem]
            faults.append(
                UsageFault(
                    f"{' and '.join(names)} would both be written into {output / stem}.{format}.",
                    "Give them to two runs with a folder each, or rename one.",
                )
            )
    raise_all(faults)


def _plan(
    found: Sequence[tuple[str, Recording]],
    output: Path,
    formats: Sequence[str],
    about: Mapping[str, str],
    made: Made | None,
    inputs: Sequence[Path],
    *,
    resume: bool,
    force: bool,
) -> tuple[list[_Item], int, list[str]]:
    """Return the recordings to hear, how many have transcripts already, and notes on those.

    Args:
        found: recordings with the names of their transcripts.
        output: the folder, or the file of a single one.
        formats: of transcripts.
        about: what they depend on beside the audio.
        made: those of the folder; None for a file.
        inputs: files that are read, and not replaced.
        resume: whether transcripts that exist are left out, if they are made as `about` says.
        force: whether others that exist are replaced.

    Raises:
        LorsmergeError: every fault of the transcripts that exist.
    """
    _check_names(found, output, formats[0])
    reads = [*inputs, *(item.file for _, item in found)]
    faults = made.faults(reads) if made else []
    items, resumed, notes = [], 0, list[str]()
    for stem, recording in found:
        targets = {f: output / f"{stem}.{f}" if made else output for f in formats}
        channel = MIX if recording.channel is None else f"{recording.channel + 1}"
        own = {**about, "channel": channel}
        if resume:
            done, otherwise, edited = _finished(targets.values(), own, recording, made)
            notes += edited
            faults += [] if force else otherwise
            targets = {f: path for f, path in targets.items() if path not in done}
            if not targets:
                resumed += 1
            if not targets or (otherwise and not force):
                continue
        for path in targets.values():
            faults += check_output(path, inputs=reads, size=SIZE, force=force)
        items.append(_Item(recording, targets, own, recording.truncated, recording.seconds or 0.0))
    if faults and not resume and all(isinstance(fault, OutputFault) for fault in faults):
        faults[-1] = type(faults[-1])(
            faults[-1].what, f"{faults[-1].remedy} --resume skips recordings that are done.".strip()
        )
    raise_all(faults)
    return items, resumed, notes


def _finished(
    paths: Iterable[Path],
    about: Mapping[str, str],
    recording: Recording,
    made: Made | None,
) -> tuple[set[Path], list[LorsmergeError], list[str]]:
    """Return the transcripts that are kept, a fault of each that was made otherwise, and notes.

    Those that were edited are kept, and a note says so.
    """
    done, faults, notes = set[Path](), list[LorsmergeError](), list[str]()
    there = [path for path in paths if path.is_file()]
    about = {**about, HEARD: audio_digest(recording.source)} if there and made else about
    for path in there:
        try:
            differs = made.differences(path, about) if made else None
        except EditedError:
            notes.append(
                f"{path} is not as it was written: it was edited, or made otherwise. It is left as it is."
            )
            differs = None
        if made is None:
            notes.append(
                f"{path} exists and is left as it is: of a single file nothing records which audio it was "
                "made of. With -o FOLDER a journal does."
            )
        if differs is None:
            done.add(path)
        else:
            faults.append(
                OutputFault(
                    f"{path} was made otherwise: {differs}.",
                    "--resume --force replaces it; another folder with -o keeps it.",
                )
            )
    return done, faults, notes


def _expanded(given: Sequence[Path], faults: list[LorsmergeError]) -> list[Path]:
    """Return the files, with those of folders in their place."""
    paths: list[Path] = []
    for path in dict.fromkeys(given):
        if path == STDIN or not path.is_dir():
            paths.append(path)
            continue
        inside = files_in(path)
        if not inside:
            faults.append(
                UnreadableFile(
                    f"{path} holds no audio file.",
                    f"Files are found by their suffix: {', '.join(AUDIO[:6])}, ...",
                )
            )
        paths += inside
    return list(dict.fromkeys(paths))


def _by_channel(stem: str, recording: Recording, channels: str) -> list[tuple[str, Recording]]:
    """Return the recordings that are heard of one, with the names of their transcripts.

    Raises:
        UsageFault: ffmpeg, which mixes them, has the channels.
    """
    if channels == MIX:
        return [(stem, recording)]
    if recording.converted:
        raise UsageFault(
            f"{recording.name} is read through ffmpeg, and its channels are not split.",
            "Convert it to flac first.",
        )
    return [
        (
            f"{stem}.{number + 1}",
            replace(recording, channel=number, name=f"{recording.name} (channel {number + 1})"),
        )
        for number in range(recording.channels)
    ]


def _run(
    items: Sequence[_Item],
    decoder: Decoder,
    language: str | None,
    task: str,
    settings: LongSettings,
    made: Made | None,
    force: bool,
    progress: Callable[[int, int], None],
) -> list[RecordingReport]:
    """Hear recordings, and write the transcript of each when it has ended."""
    reports: dict[int, RecordingReport] = {}
    total = max(1, round(sum(item.seconds for item in items)))
    shown = heard = 0.0

    def advance(seconds: float) -> None:
        nonlocal shown, heard
        heard += seconds
        step = int(heard - shown)
        shown += step
        progress(step, max(total, round(heard)))

    def write(index: int, found: Heard) -> None:
        item = items[index]
        recording = item.recording
        about = {**item.about, HEARD: audio_digest(recording.source)} if made else {}
        for format, path in item.targets.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path, force=force) as partial:
                write_transcript(partial, format, found.segments, found.language)
                if made:
                    made.add(path, partial, about)
        reports[index] = RecordingReport(
            recording.name, None if recording.channel is None else recording.channel + 1,
            found.language, found.probability, round(found.seconds, 3), len(found.segments),
            found.failed, found.cut, found.skipped, found.windows,
            item.truncated or found.seconds + GUESS < item.seconds,
            tuple(item.targets.values()), found.sounding, found.unheard, _remedies(found, settings),
        )  # fmt: skip

    try:
        hear(
            decoder.speech, [ToHear(item.recording, language, task) for item in items], settings,
            ear=decoder.ear(), done=write, progress=advance,
        )  # fmt: skip
    except KeyboardInterrupt:
        kept = f", whose transcripts are kept in {next(iter(items[0].targets.values())).parent}"
        raise Interrupted(
            f"Interrupted after {len(reports)} of {len(items)} recordings{kept if reports else ''}.",
            "The same command with --resume skips the transcripts that are done."
            if made
            else "Nothing was written.",
        ) from None
    return [reports[index] for index in range(len(items))]


def _remedies(found: Heard, settings: LongSettings) -> tuple[str, ...]:
    """Return the options that may give a text to the windows that got none."""
    ways = {
        "--no-condition (the text so far may silence a model that was trained without)": (
            settings.condition and bool(found.segments)
        ),
        f"--no-speech inf (at {settings.no_speech:g}, {found.skipped} windows are taken for silent)": (
            found.skipped > 0
        ),
    }
    return tuple(name for name, applies in ways.items() if applies)
