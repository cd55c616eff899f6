"""`lorsmerge transcribe`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorsmerge_cli import console, options
from lorsmerge_cli.errors import raise_all

if TYPE_CHECKING:
    from lorsmerge_cli.operations.transcribe import LabelPlan, LabelReport

_labels = options.panel("Labels to learn from")
OF_FILES = {  # parameters of the command that transcribes files
    "models", "audio", "language", "task", "beam", "device", "config_dir", "quiet", "as_json", "debug",
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
        "--audio", "-a", metavar="FILE", help="wav, flac, mp3 or ogg (may be repeated).")] = None,
    datasets: Annotated[list[Path] | None, options.data(
        "--data", metavar="DATA", help="Manifest, data folder, or hub:ORG/NAME:CONFIG on the Hub, to "
        "transcribe with teachers (may be repeated). Texts that it has are not used.")] = None,
    split: options.Split = None,
    language: Annotated[str | None, options.data(
        "--language", metavar="CODE", help="Spoken language (ca, Catalan) of the files, or of data "
        "that does not name it; rows that name another are skipped.")] = None,
    task: Annotated[str | None, options.data(
        "--task", metavar="TASK", help="asr (transcribe) or st (translate into English); of files "
        "asr by default. Rows of data that name the other are skipped.")] = None,
    only: options.Only = None,
    where: options.Where = None,
    hours: options.Hours = None,
    data_seed: options.DataSeed = 0,
    allow_parts: options.AllowParts = False,
    format: options.Format = None,
    teachers: Annotated[list[str] | None, _labels(
        "--teacher", metavar="LANGUAGE=MODEL", help="Transcribe rows of this language with this "
        "model (may be repeated). LANGUAGE_TASK=MODEL is for one task of it, and MODEL alone for all "
        "rows that have no other teacher.")] = None,
    output: Annotated[Path | None, options.output(
        "--output", "-o", metavar="JSONL", help="Manifest to write, for finetune --data. "
        "JSONL.journal keeps every hypothesis as it is made, and a second run resumes from it; "
        "JSONL.run.json says how it was made.")] = None,
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
    dtype: options.ComputeDtype = "float32",
    device: options.Device = "auto",
    config_dir: options.ConfigDir = None,
    dry_run: options.DryRun = False,
    verbose: options.Verbose = False,
    force: options.Force = False,
) -> None:  # fmt: skip
    """Transcribe audio files with several models, or a data set with a teacher for each language.

    With MODEL and --audio, the texts of several models are shown side by side. With --data, --teacher
    and -o, each row is transcribed by its language's teacher, one of which is in memory at a time, and
    the texts are written as a manifest that finetune learns from (docs/distil.md).

    Example: lorsmerge transcribe --data unlabelled.jsonl --teacher ca=ft/ca_asr --teacher de=ft/de_asr -o pseudo.jsonl
    """
    if not (datasets or teachers or output):
        _refuse_labelling(context)
        _transcribe_files(models, audio, language, task, beam, device, config_dir)
        return
    if models or audio:
        raise typer.BadParameter(
            "MODEL and --audio transcribe files; --data, --teacher and -o transcribe a data set. "
            "Give the ones or the others."
        )
    if not (datasets and teachers and output):
        given = {"--data": datasets, "--teacher": teachers, "--output": output}
        missing = [name for name, value in given.items() if not value]
        raise typer.BadParameter(f"Give {' and '.join(missing)} as well, to transcribe a data set.")
    from lorsmerge_cli import usage
    from lorsmerge_cli.data.conditions import parse_conditions

    conditions = parse_conditions(only or (), where or ())
    limit = None if memory is None else options.parse_size("--memory", memory)
    raise_all(
        usage.check_inputs(
            [], datasets, format=format, hours=hours, language=language, task=task, dtype=dtype,
            device=device,
        )
        + usage.check_paths([config_dir])
        + usage.check_labelling(
            output, teachers, datasets, min_confidence=min_confidence, force=force
        )
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


def _refuse_labelling(context: typer.Context) -> None:
    """Refuse options on the command line that files are transcribed without."""
    ignored = options.others_given(context, OF_FILES)
    if ignored:
        raise typer.BadParameter(
            f"{', '.join(ignored)} needs --data, --teacher and -o, which transcribe a data set."
        )


def _transcribe_files(
    models: Sequence[Path] | None,
    audio: Sequence[Path] | None,
    language: str | None,
    task: str | None,
    beam: int,
    device: str,
    config_dir: Path | None,
) -> None:
    if not (models and audio and language):
        given = {"MODEL": models, "--audio": audio, "--language": language}
        missing = [name for name, value in given.items() if not value]
        raise typer.BadParameter(
            f"Give {' and '.join(missing)} as well, to transcribe files; or --data, --teacher and -o, "
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
