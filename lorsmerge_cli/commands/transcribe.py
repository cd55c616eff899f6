"""`lorsmerge transcribe`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorsmerge_cli import console, options
from lorsmerge_cli.errors import UsageFault, raise_all

if TYPE_CHECKING:
    from lorsmerge_cli.operations.transcribe import LabelPlan, LabelReport, TranscriptsReport

_labels = options.panel("Labels to learn from")
_long = options.panel("Recordings of any length")
OF_RECORDINGS = {  # parameters of the command that writes transcripts of recordings
    "models", "audio", "output", "formats", "language", "task", "beam", "best_of", "temperatures",
    "compression_ratio", "logprob", "no_speech", "no_condition", "no_timestamps", "words", "channels", "max_tokens",
    "batch_size", "seed", "engine", "dtype", "device", "config_dir", "resume", "force", "quiet", "as_json",
    "debug",
}  # fmt: skip
OF_FILES = {  # parameters of the command that shows the texts of files
    "models", "audio", "language", "task", "beam", "device", "config_dir", "quiet", "as_json", "debug",
}  # fmt: skip
ONLY_OF_RECORDINGS = {  # parameters that have no effect on a data set
    "formats", "best_of", "temperatures", "compression_ratio", "logprob", "no_speech", "no_condition",
    "no_timestamps", "words", "channels", "resume", "seed", "engine",
}  # fmt: skip
REASONS = {
    "empty": "no text",
    "looping": "a text that repeats itself (zlib compresses it to less than 1/2.4)",
    "cut": "a text that reached the limit of tokens",
    "unsure": "a text below --min-confidence",
}


def transcribe(
    context: typer.Context,
    models: Annotated[list[Path] | None, typer.Argument(
        metavar="MODEL", help="Model folders, files of weights, or Hub ids, to transcribe files "
        "with.")] = None,
    audio: Annotated[list[Path] | None, options.data(
        "--audio", "-a", metavar="FILE", help="wav, flac, mp3 or ogg (may be repeated); with -o also "
        "whatever ffmpeg decodes, a folder, or - for standard input.")] = None,
    datasets: Annotated[list[Path] | None, options.data(
        "--data", metavar="DATA", help="Manifest, data folder, or hub:ORG/NAME:CONFIG on the Hub, to "
        "transcribe with teachers (may be repeated). Texts that it has are not used.")] = None,
    split: options.Split = None,
    language: Annotated[str | None, options.data(
        "--language", metavar="CODE", help="Spoken language (ca, Catalan) of the files, or of data "
        "that does not name it; rows that name another are skipped. Of files it is identified by "
        "default.")] = None,
    task: Annotated[str | None, options.data(
        "--task", metavar="TASK", help="asr (transcribe) or st (translate into English); of files "
        "asr by default. Rows of data that name the other are skipped.")] = None,
    only: options.Only = None,
    where: options.Where = None,
    hours: options.Hours = None,
    streaming: options.Streaming = False,
    data_seed: options.DataSeed = 0,
    allow_parts: options.AllowParts = False,
    format: options.Format = None,
    teachers: Annotated[list[str] | None, _labels(
        "--teacher", metavar="LANGUAGE=MODEL", help="Transcribe rows of this language with this "
        "model (may be repeated). LANGUAGE_TASK=MODEL is for one task of it, and MODEL alone for all "
        "rows that have no other teacher.")] = None,
    output: Annotated[Path | None, options.output(
        "--output", "-o", metavar="PATH", help="Of files: transcript to write (.txt, .srt, .vtt, "
        ".tsv, .json), or a folder for those of several. Of data: manifest to write, for finetune "
        "--data; PATH.journal keeps every hypothesis as it is made, and a second run resumes from "
        "it; PATH.run.json says how it was made.")] = None,
    formats: Annotated[list[str] | None, _long(
        "--as", metavar="FORMAT", help="Transcripts to write into a folder: txt, srt, vtt, tsv or "
        "json (may be repeated); srt by default.")] = None,
    best_of: Annotated[int, _long(
        "--best-of", metavar="N", min=1, help="Samples at temperatures above 0, of which the "
        "likeliest is taken.")] = 5,
    temperatures: Annotated[str, _long(
        "--temperatures", metavar="T,T,...", help="Temperatures that are tried in turn until the "
        "text of a window passes; 0 is the search with --beam.")] = "0,0.2,0.4,0.6,0.8,1",
    compression_ratio: Annotated[float, _long(
        "--compression-ratio", metavar="X", help="A text that zlib compresses more than X times "
        "repeats itself, and does not pass; inf lets all pass.")] = 2.4,
    logprob: Annotated[float, _long(
        "--logprob", metavar="X", help="A text whose mean log-probability of a token is below X does "
        "not pass; -inf lets all pass.")] = -1.0,
    no_speech: Annotated[float, _long(
        "--no-speech", metavar="P", help="A window whose text does not reach --logprob is silent if "
        "<|nospeech|> is likelier than P; inf means that none is.")] = 0.6,
    no_condition: Annotated[bool, _long(
        "--no-condition", help="Do not give the text so far as a prompt to the next window: a text "
        "that loops then does not infect the next one. For models that were never trained with a "
        "prompt, which fall silent after one.")] = False,
    no_timestamps: Annotated[bool, _long(
        "--no-timestamps", help="Do not predict the times of segments, by which windows are moved: "
        "windows follow each other, and each becomes a segment. For models that have forgotten "
        "their timestamps.")] = False,
    words: Annotated[bool, _long(
        "--words", help="Find when each word is said, by cross-attention: in .json, and as the bounds "
        "of subtitles.")] = False,
    channels: Annotated[str, _long(
        "--channels", metavar="WAY", help="mix hears the mean of all channels; split hears each, for "
        "telephone calls, and writes FILE.1.srt, FILE.2.srt, ...")] = "mix",
    resume: Annotated[bool, _long(
        "--resume", help="Skip recordings whose transcripts are in the folder already, made of the same "
        "audio by the same model and settings: transcripts.journal there says so. Others are an error; "
        "with --force they are replaced.")] = False,
    seed: Annotated[int, _long(
        "--seed", metavar="N", help="Seed of the samples at temperatures above 0.")] = 0,
    min_confidence: Annotated[float | None, _labels(
        "--min-confidence", metavar="X", help="Skip texts whose confidence is below this: the mean "
        "log-probability of a token, 0 at best (Whisper's avg_logprob, whose threshold is "
        "-1).")] = None,
    keep_flawed: Annotated[bool, _labels(
        "--keep-flawed", help="Keep texts that repeat themselves or were cut at the limit of "
        "tokens, and rows without text; by default they are skipped.")] = False,
    skip_others: Annotated[bool, _labels(
        "--skip-others", help="Skip rows that no teacher is for; by default they are an "
        "error.")] = False,
    beam: options.Beam = 5,
    batch_size: options.BatchSize = None,
    max_tokens: options.MaxTokens = None,
    memory: options.MemorySize = None,
    engine: options.EngineName = "torch",
    dtype: options.ComputeDtype = "float32",
    device: options.Device = "auto",
    config_dir: options.ConfigDir = None,
    dry_run: options.DryRun = False,
    verbose: options.Verbose = False,
    force: options.Force = False,
) -> None:  # fmt: skip
    """Transcribe recordings of any length, or a data set with a teacher for each language.

    With MODEL and --audio, the texts of several models are shown side by side; with -o, those of one
    are written as subtitles or texts (docs/long.md). With --data, --teacher and -o, each row is
    transcribed by its language's teacher, one of which is in memory at a time, and the texts are
    written as a manifest that finetune learns from (docs/distil.md).

    Example: lorsmerge transcribe merged/ --audio lecture.mp3 -o lecture.srt
    Example: lorsmerge transcribe --data unlabelled.jsonl --teacher ca=ft/ca_asr --teacher de=ft/de_asr -o pseudo.jsonl
    """
    of_data = datasets or teachers
    if not (of_data or output):
        _refuse_others(context, OF_FILES)
        _transcribe_files(models, audio, language, task, beam, device, config_dir)
        return
    if not of_data and output and (models or audio):
        _refuse_others(context, OF_RECORDINGS)
        _transcribe_recordings(
            models, audio, output, formats=formats or (), language=language, task=task or "asr",
            beam=beam, best_of=best_of, temperatures=options.parse_numbers("--temperatures", temperatures),
            compression_ratio=compression_ratio, logprob=logprob, no_speech=no_speech,
            condition=not no_condition, timestamps=not no_timestamps, words=words, channels=channels, max_tokens=max_tokens,
            batch_size=batch_size, seed=seed, engine=engine, dtype=dtype, device=device, config_dir=config_dir,
            resume=resume, force=force,
        )  # fmt: skip
        return
    if models or audio:
        raise typer.BadParameter(
            "MODEL and --audio transcribe files; --data, --teacher and -o transcribe a data set. "
            "Give the ones or the others."
        )
    if not (datasets and teachers and output):
        given = {"--data": datasets, "--teacher": teachers, "--output": output}
        raise _lacking("A data set is transcribed", given)
    _refuse_of_recordings(context)
    from lorsmerge_cli import usage
    from lorsmerge_cli.data.conditions import parse_conditions

    conditions = parse_conditions(only or (), where or ())
    datasets = usage.streamed(datasets, hours, streaming)
    limit = None if memory is None else options.parse_size("--memory", memory)
    raise_all(
        usage.check_inputs(
            [], datasets, format=format, hours=hours, language=language, task=task, dtype=dtype, device=device,
        )
        + usage.check_paths([config_dir])
        + usage.check_labelling(output, teachers, datasets, min_confidence=min_confidence, force=force)
    )  # fmt: skip
    from lorsmerge_cli.operations.transcribe import plan_labels, run_labels

    with console.progress("check", "utterances") as progress:
        plan = plan_labels(
            datasets, teachers, output, split=split, language=language, task=task, hours=hours,
            conditions=conditions, seed=data_seed, allow_parts=allow_parts, format=format,
            min_confidence=min_confidence, keep_flawed=keep_flawed, skip_others=skip_others,
            beam=beam, batch_size=batch_size, max_tokens=max_tokens, memory=limit, dtype=dtype,
            device=device, config_dir=config_dir, force=force, progress=progress,
        )  # fmt: skip
    console.warning(*plan.warnings)
    if verbose:
        console.note(*plan.data.drop_notes)
    if dry_run:
        console.result(_plan_document(plan), lambda: _show_plan(plan))
        return
    with console.progress("transcribe", "utterances") as progress:
        report = run_labels(plan, device=device, progress=progress)
    console.warning(*report.warnings)
    console.result(asdict(report), lambda: _show(report))


def _refuse_others(context: typer.Context, used: Collection[str]) -> None:
    """Refuse options on the command line that have no effect on files."""
    ignored = options.others_given(context, used)
    of_data = options.others_given(context, OF_RECORDINGS)
    if of_data:
        hint = " Formats of transcripts are given by --as." if "--format" in of_data else ""
        raise typer.BadParameter(
            f"{', '.join(of_data)} needs --data, --teacher and -o, which transcribe a data set.{hint}"
        )
    if ignored:
        raise typer.BadParameter(
            f"{', '.join(ignored)} needs -o FILE, which writes the transcript of a recording, or "
            "--data, --teacher and -o, which transcribe a data set."
        )


def _refuse_of_recordings(context: typer.Context) -> None:
    """Refuse options on the command line that have no effect on a data set."""
    others = {parameter.name or "" for parameter in context.command.params} - ONLY_OF_RECORDINGS
    if given := options.others_given(context, others):
        raise typer.BadParameter(
            f"{', '.join(given)} applies to recordings (MODEL, --audio and -o), and has no effect on --data."
        )


def _missing(given: dict[str, Any]) -> str:
    return " and ".join(name for name, value in given.items() if not value)


def _lacking(what: str, given: dict[str, Any]) -> UsageFault:
    """Return the fault of options that are needed for something and were not given."""
    missing = _missing(given)
    return UsageFault(f"{what}, and {missing} is missing.", f"Give {missing} as well.")


def _transcribe_recordings(
    models: Sequence[Path] | None, audio: Sequence[Path] | None, output: Path, **settings: Any
) -> None:
    if not (models and audio):
        given = {"MODEL": models, "--audio": audio}
        raise _lacking("Transcripts of files are written", given)
    if len(models) > 1:
        raise typer.BadParameter(
            "-o writes the transcripts of one MODEL. Without it the texts of several are shown."
        )
    from lorsmerge_cli import usage

    raise_all(
        usage.check_inputs(
            models, [], language=settings["language"], task=settings["task"],
            engine=settings["engine"], dtype=settings["dtype"], device=settings["device"],
        )
        + usage.check_paths([settings["config_dir"]])
    )  # fmt: skip
    from lorsmerge_cli.operations.transcribe import transcribe_recordings

    with console.progress("transcribe", "seconds") as progress:
        report = transcribe_recordings(models[0], audio, output, progress=progress, **settings)
    console.warning(*report.warnings)
    console.result(asdict(report), lambda: _show_recordings(report))


def _show_recordings(report: TranscriptsReport) -> None:
    rows = []
    for item in report.recordings:
        sure = "" if item.probability is None else f" ({item.probability:.0%})"
        rows.append(
            [item.audio, f"{item.language}{sure}", f"{item.seconds:.1f}", str(item.windows),
             str(item.segments), ", ".join(str(path) for path in item.files)]
        )  # fmt: skip
    if rows:
        console.table(["recording", "language", "seconds", "windows", "segments", "written"], rows)
    if report.resumed:
        console.line(f"{report.resumed} recordings have transcripts already, and are skipped")


def _transcribe_files(
    models: Sequence[Path] | None,
    audio: Sequence[Path] | None,
    language: str | None,
    task: str | None,
    beam: int,
    device: str,
    config_dir: Path | None,
) -> None:
    if not (models and audio):
        missing = _missing({"MODEL": models, "--audio": audio})
        raise typer.BadParameter(
            f"Give {missing} as well, to transcribe files; or --data, --teacher and -o, "
            "to transcribe a data set."
        )
    from lorsmerge_cli import usage

    task = task or "asr"
    raise_all(
        usage.check_inputs(models, [], language=language, task=task, device=device)
        + usage.check_paths([config_dir])
        + usage.check_audio(audio)
    )
    from lorsmerge_cli.operations.transcribe import transcribe as operation

    transcripts = operation(
        models, audio, language=language, task=task, beam=beam, device=device, config_dir=config_dir
    )
    console.warning(*dict.fromkeys(text for item in transcripts for text in item.warnings))
    rows = [
        [*([str(item.audio)] if len(audio) > 1 else []), item.model, item.text]
        for item in transcripts
    ]
    heads = [*(["audio"] if len(audio) > 1 else []), "model", "text"]
    console.result(
        {"transcripts": [asdict(item) for item in transcripts]}, lambda: console.table(heads, rows)
    )


def _plan_document(plan: LabelPlan) -> dict[str, object]:
    return {
        "teachers": [
            {
                "teacher": lesson.source.name,
                "identity": lesson.identity,
                "utterances": len(lesson.rows),
            }
            for lesson in plan.lessons
        ],
        "dropped": plan.data.reasons,
        "without_teacher": dict(plan.others),
        "output": str(plan.output),
    }


def _show_plan(plan: LabelPlan) -> None:
    rows = []
    for lesson in plan.lessons:
        pairs = dict.fromkeys(f"{row.language} {row.task}" for row in lesson.rows)
        seconds = sum(row.duration or 0.0 for row in lesson.rows)
        rows.append(
            [lesson.source.name, ", ".join(pairs), str(len(lesson.rows)), f"{seconds / 3600:.2f}"]
        )
    console.table(["teacher", "transcribes", "utterances", "hours"], rows)
    console.line(f"would write {plan.output}, {plan.journal} and {plan.record}")


def _show(report: LabelReport) -> None:
    reasons = [key for key in REASONS if any(key in group.skipped for group in report.groups)]
    rows = [
        [
            group.teacher, group.language, group.task, str(group.utterances), str(group.kept),
            f"{group.hours:.2f}", *(str(group.skipped.get(key, 0)) for key in reasons),
            "" if group.confidence is None else f"{group.confidence:.2f}",
        ]
        for group in report.groups
    ]  # fmt: skip
    heads = ["teacher", "language", "task", "utterances", "kept", "hours", *reasons, "confidence"]
    console.table(heads, rows)
    for key in reasons:
        console.line(f"{key}: {REASONS[key]}")
    console.line("confidence: mean log-probability of a token (0 at best), over the texts kept")
    if report.resumed:
        console.line(f"{report.resumed} texts were in {report.journal} already")
    console.line(f"{report.output}: {report.rows} rows")
