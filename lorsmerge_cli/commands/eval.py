"""`lorsmerge eval`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorsmerge_cli import console, options
from lorsmerge_cli.errors import raise_all

if TYPE_CHECKING:
    from lorsmerge_cli.results.document import EvalReport, TestSet
    from lorsmerge_cli.results.records import Record
    from lorsmerge_cli.results.suite import Published
    from lorsmerge_cli.speech.source import ModelSource

_models = options.panel("Models")
ERRORS = {"sub": "substitutions", "del": "deletions", "ins": "insertions"}
WITHOUT_MODELS = {  # parameters that --score-only uses
    "models", "suite", "hypotheses", "score_only", "normalisation", "metrics", "compare", "samples", "seed", "output",
    "trn", "worst", "verbose", "force", "quiet", "as_json", "debug",
}  # fmt: skip


def evaluate(
    context: typer.Context,
    models: Annotated[list[str] | None, typer.Argument(
        metavar="MODEL",
        help="Model folders, files of weights, or Hub ids; NAME=PATH gives one a name. With "
        "--score-only, files of hypotheses.")] = None,
    datasets: Annotated[list[str] | None, options.data(
        "--data", metavar="DATA",
        help="Test set: a manifest, a folder, or hub:ORG/NAME:CONFIG:SPLIT on the Hub (may be "
        "repeated); NAME=PATH gives one a name.")] = None,
    suite: Annotated[Path | None, options.data(
        "--suite", metavar="TOML",
        help="File of test sets by name, with what each is read and scored by (examples/suites/, "
        "docs/scores.md). What it says of a set comes before the options here.")] = None,
    output: Annotated[Path | None, options.output(
        "--output", "-o", metavar="JSON",
        help="Results with counts, signatures and every hypothesis.")] = None,
    split: options.Split = "test",
    language: Annotated[str | None, options.data(
        "--language", metavar="CODE", help="Spoken language (ca, Catalan) of data that does not name "
        "it; rows that name another are skipped. auto has each model identify it, and shows what it "
        "heard.")] = None,
    task: options.Task = None,
    only: options.Only = None,
    where: options.Where = None,
    hours: options.Hours = None,
    streaming: options.Streaming = False,
    data_seed: options.DataSeed = 0,
    allow_missing: Annotated[bool, options.data(
        "--allow-missing", help="Skip rows whose audio is damaged or missing; by default damaged "
        "audio is an error, and so is missing audio of more than 5% of the rows, or no use for "
        "more than half.")] = False,
    allow_parts: options.AllowParts = False,
    format: options.Format = None,
    long: Annotated[bool, options.decoding(
        "--long", help="Hear rows of any length, window after window, as transcribe -o does; by "
        "default rows longer than the window are dropped.")] = False,
    no_condition: Annotated[bool, options.decoding(
        "--no-condition", help="With --long, do not give the text so far as a prompt to the next "
        "window: models that were never trained with a prompt fall silent after one.")] = False,
    beam: options.Beam = 20,
    batch_size: options.BatchSize = None,
    max_tokens: options.MaxTokens = None,
    memory: options.MemorySize = None,
    engine: options.EngineName = "torch",
    dtype: options.ComputeDtype = "float32",
    device: options.Device = "auto",
    config_dir: options.ConfigDir = None,
    apply: Annotated[list[Path] | None, _models(
        "--apply", metavar="DELTA",
        help="Score the one MODEL with this delta added (may be repeated).")] = None,
    scale: Annotated[float | None, _models(
        "--scale", metavar="X", help=f"Lambda of each applied delta; {options.SCALES}.")] = None,
    coef: Annotated[list[str] | None, _models(
        "--coef", metavar="RULE", help="Rule of factors that lambda is multiplied by, as in merge: "
        "decoder=0.5 (may be repeated).")] = None,
    method: Annotated[str | None, _models(
        "--method", metavar="NAME", help="How deltas are applied, with parameters after a colon "
        f"(ties:k=0.3): {options.WITHOUT_RATIOS}.")] = None,
    normalisation: options.Normalise = "auto",
    metrics: Annotated[list[str] | None, options.scoring(
        "--metric", metavar="NAME", help="Additional metric for the scores and for --compare (may "
        "be repeated); NAME=OPTION where it takes an option.")] = None,
    compare: Annotated[tuple[str, str] | None, options.scoring(
        "--compare", metavar="A B",
        help="Paired test of two of the models, by speaker (sign flips).")] = None,
    samples: Annotated[int, options.scoring(
        "--samples", metavar="N", min=2,
        help="Random sign flips of a paired test of more than 12 speakers.")] = 10_000,
    hypotheses: Annotated[Path | None, options.output(
        "--hypotheses", metavar="JSONL", help="Store hypotheses here as they are decoded; a second "
        "run resumes from them.")] = None,
    score_only: Annotated[bool, options.scoring(
        "--score-only", help="Score files of hypotheses again, without models: those of shards, or "
        "of models that were decoded apart, together.")] = False,
    shard: Annotated[str | None, options.data(
        "--shard", metavar="I/N", help="Decode the I-th of N parts of each test set into "
        "--hypotheses, for as many jobs; --score-only joins their files.")] = None,
    trn: Annotated[Path | None, options.output(
        "--trn", metavar="FOLDER", help="References and hypotheses for sclite.")] = None,
    worst: Annotated[int, options.output(
        "--worst", metavar="N",
        help="Show the N utterances with the most errors of each model.")] = 0,
    seed: options.Seed = 0,
    verbose: options.Verbose = False,
    force: options.Force = False,
) -> None:  # fmt: skip
    """Score models on speech recognition (WER, CER) and translation into English (BLEU, chrF2).

    Language and task come from each row of the data, so one run covers many of both. Scores have a
    standard error over speakers; the results file records all settings they depend on.

    Example: lorsmerge eval merged/ base/ ft/ca_asr --data test.jsonl --beam 20 -o results.json
    """
    said = _hypothesis_files(context, models, hypotheses) if score_only else []
    models = [] if score_only else models or []
    _check_given(bool(said or (models and (datasets or suite))), compare, shard, hypotheses)
    from lorsmerge_cli import usage
    from lorsmerge_cli.data.conditions import parse_conditions
    from lorsmerge_cli.metrics import check_metrics
    from lorsmerge_cli.recipe.coefficients import check_rules
    from lorsmerge_cli.recipe.recipe import unpruned_method_faults
    from lorsmerge_cli.results.suite import check_suite_data, read_suite

    datasets = usage.streamed(datasets, hours, streaming)
    of_suite = None if suite is None else read_suite(suite)
    files = [path for _, path in usage.named_paths(models)] + (apply or [])
    data = [] if score_only else [path for _, path in usage.named_data(datasets or ())]
    named = usage.named_models(models, apply or [], method, scale, coef or ())
    limit = None if memory is None else options.parse_size("--memory", memory)
    spoken = None if language == "auto" else language
    reading: dict[str, Any] = {
        "split": split, "language": spoken, "task": task, "hours": hours, "format": format,
        "seed": data_seed, "allow_parts": allow_parts, "allow_missing": allow_missing,
        "shard": usage.parse_shard(shard), "conditions": parse_conditions(only or (), where or ()), "other_languages": True,
    }  # fmt: skip
    raise_all(
        usage.check_inputs(
            files, data, format=format, hours=hours, language=spoken, task=task, engine=engine,
            normalise=normalisation, dtype=dtype, device=device, numbers={"--scale": scale},
        )
        + usage.check_applied(models, apply or [], {"--scale": scale, "--method": method, "--coef": coef})
        + unpruned_method_faults(method)
        + check_rules(coef or ())
        + check_metrics(metrics or ())
        + usage.check_paths([config_dir])
        + check_suite_data(None if said else of_suite, split)
        + usage.check_evaluation(
            [name for name, _ in named], [*(said or [*files, *data]), *([suite] if suite else [])],
            compared=compare, hypotheses=hypotheses, score_only=score_only, output=output, trn=trn, force=force,
        )
    )  # fmt: skip
    from lorsmerge_cli.metrics.metric import Scoring
    from lorsmerge_cli.operations import eval as scoring

    scored: dict[str, Any] = {
        "scoring": Scoring(normalisation, samples, seed, tuple(metrics or ())), "output": output,
        "force": force, "trn": trn, "compared": compare,
        "suite": of_suite and of_suite.scored(whole=not (hours or only or where)),
    }  # fmt: skip
    if score_only:
        report = scoring.rescore(said, **scored)
    else:
        sources = scoring.open_models(models, config_dir, apply or [], method, scale, coef or ())
        console.note(*([] if scale is not None else _lambda_notes(sources)))
        hearing, _ = scoring.Hearing.of(long, language, not no_condition)
        planned = scoring.planned_sets(datasets or (), of_suite, reading)
        tests = _test_sets(planned, hearing.longest(sources), hours, verbose)
        with console.progress("eval", "utterances") as done:
            report = scoring.run_evaluation(
                sources, tests, beam=beam, batch_size=batch_size, max_tokens=max_tokens, memory=limit, engine=engine,
                dtype=dtype, device=device, hearing=hearing, hypotheses=hypotheses, progress=done, **scored,
            )  # fmt: skip
    if report.main:
        console.warning(*report.warnings)
        console.result(report.to_dict(), lambda: _show(report, worst, verbose))
        console.note(*_notes(reading["shard"], hypotheses, output, empty=not report.records))


def _check_given(
    something: bool,
    compare: tuple[str, str] | None,
    shard: str | None,
    hypotheses: Path | None,
) -> None:
    """Refuse arguments that lack others; `something` says whether there is anything to score."""
    if compare and any(name.startswith("--") for name in compare):
        raise typer.BadParameter("--compare takes two names of models: --compare base merged.")
    if not something:
        raise typer.BadParameter(
            "Give a MODEL and --data or --suite, or --score-only and hypotheses."
        )
    if shard and not hypotheses:
        raise typer.BadParameter("--shard needs --hypotheses, a file of each part's own.")


def _notes(
    part: tuple[int, int], hypotheses: Path | None, output: Path | None, *, empty: bool
) -> list[str]:
    """Return what is said below the scores: of which part they are, and where they were written."""
    of_part = (
        f"part {part[0]} of {part[1]} has no utterance: {hypotheses} has no lines, and can be joined "
        "with the other parts' files as it is"
        if empty
        else f"these scores are of part {part[0]} of {part[1]}, not of the whole test set: `lorsmerge eval "
        f"--score-only` joins the parts' files, {hypotheses} and the others"
    )
    return [*([of_part] if part[1] > 1 else []), *([] if output is None else [f"wrote {output}"])]


def _lambda_notes(sources: Sequence[ModelSource]) -> list[str]:
    """Return what a delta that is applied alone is scaled with, where that makes it another model."""
    return [
        f"{vector.path} is applied with lambda {scale:g}, as in a merge; --scale 1 is the fine-tune "
        "as it was trained"
        for source in sources
        for vector, scale in source.applied
        if len(source.applied) == 1 and scale != 1
    ]


def _hypothesis_files(
    context: typer.Context, names: Sequence[str] | None, hypotheses: Path | None
) -> list[Path]:
    """Return the files that --score-only scores, and refuse options that it does not use."""
    files = [*map(Path, names or ()), *([] if hypotheses is None else [hypotheses])]
    if not files:
        raise typer.BadParameter("--score-only takes files that eval --hypotheses wrote.")
    ignored = options.others_given(context, WITHOUT_MODELS)
    if ignored:
        raise typer.BadParameter(
            f"--score-only scores everything in its files: remove {', '.join(ignored)}."
        )
    return files


def _test_sets(
    planned: Sequence[tuple[str, Path, dict[str, Any]]],
    longest: float,
    hours: list[str] | None,
    verbose: bool,
) -> list[TestSet]:
    from lorsmerge_cli.operations.eval import check_languages, read_test_set

    tests = []
    for name, path, own in planned:
        with console.progress("check", "utterances") as progress:
            test, warnings, drop_notes = read_test_set(
                name, path, longest, progress=progress, **own
            )
        console.warning(*warnings)
        if verbose:
            console.note(*drop_notes)
        tests.append(test)
    check_languages(hours, tests)
    return tests


def _show(report: EvalReport, worst: int, verbose: bool) -> None:
    from lorsmerge_cli.results.records import few_blocks
    from lorsmerge_cli.results.suite import published_in_words

    groups: dict[str, list[Record]] = {}
    spoken = [record for record in report.records if not record.silent]
    for record in spoken:
        groups.setdefault(report.group_of(record), []).append(record)
    for group in sorted(groups):
        _summary(groups[group], report.published[0], group)
    _heard_as(spoken)
    _timestamps(report.records)
    _silence(report.records)
    for line in published_in_words(*report.published):
        console.line(line)
    if verbose or worst:
        _worst(report, worst) if worst else _details(report)
    for a, b, metric, test, pairs in report.comparisons:
        console.line(
            f"{a.dataset} {a.language} {a.task}: {metric.name} of {b.model} minus {a.model} "
            f"{test.difference:+.2f} (95% interval {test.interval.low:+.2f} to "
            f"{test.interval.high:+.2f}), p = {test.p_value:.2g}, {test.blocks} {a.block_unit}"
            + (
                ""
                if pairs is None
                else f"; MAPSSWE p = {pairs.p_value:.2g}, {pairs.segments} segments"
            )
        )
    for model, speed in report.speed.items():
        console.line(f"{model}: {speed:.1f} s of audio a second ({_decoded_on(report, model)})")
    signatures = (score.signature for r in spoken for score in r.scores.values())
    for signature in dict.fromkeys(signatures):
        console.line(f"signature: {signature}")
    if "signature" in report.settings:
        console.line(f"signature: {report.settings['signature']}")
    for way in dict.fromkeys(report.settings.get("decoded", {}).values()):
        console.line(f"decoded with: {way or 'unknown settings'}")
    if few := few_blocks(spoken):
        console.note(few)


def _decoded_on(report: EvalReport, model: str) -> str:
    """Return what a speed was measured on, in words."""
    found = report.models[model]["decoded_on"]
    threads = f", threads: {found['threads']}" if "threads" in found else ""
    processes = f", processes: {found['processes']}" if found["processes"] > 1 else ""
    return (
        f"RTFx; {found.get('engine', found['dtype'])} on {found['device']}{threads}{processes}, up to {found['batch_size']} "
        "clips at a time, audio read and features made in it, no warm-up"
    )


def _summary(records: Sequence[Record], published: Sequence[Published], group: str) -> None:
    """Show a table of models by languages of one task, as in the paper, with types of errors."""
    from lorsmerge_cli.metrics.flaws import FLAWS
    from lorsmerge_cli.results.records import average, blocks_in_words, metric_of, set_names

    sets = list(dict.fromkeys((record.dataset, record.language) for record in records))
    heads = set_names(sets)
    reported = list(dict.fromkeys(record.metric for record in records))
    names = dict.fromkeys(name for record in records for name in record.scores)
    others = [name for name in names if name not in reported]
    error_types = [
        name for name, key in ERRORS.items() if all(key in record.details for record in records)
    ]
    flaws = [key for key in FLAWS if any(record.details[key] for record in records)]
    rows = []
    for model in dict.fromkeys(record.model for record in records):
        by_set = {(r.dataset, r.language): r for r in records if r.model == model}
        own = list(by_set.values())
        mean, error = average(own)
        row = [model, *(f"{by_set[key].score:.2f}" if key in by_set else "" for key in sets)]
        row += [f"{mean:.2f}", _decimals(error, 2)]
        row += [_mean(own, name) for name in others]
        row += [_share(own, ERRORS[error_type]) for error_type in error_types]
        rows.append(row + [_sum(own, key) for key in flaws])
    columns = {(record.dataset, record.language, record.task): record.metric for record in records}
    width = len(rows[0])
    rows += [row + [""] * (width - len(row)) for row in _published_rows(columns, published)]
    unit = metric_of(records[0]).unit
    title = f"{' / '.join(reported)} {unit if unit == '%' else ''}".strip()
    title += "".join(f", {how}" for how in group.split(" ")[1:])
    console.table(
        ["model", *heads, "average", "+-", *others, *error_types, *flaws], rows, title=title
    )
    legend = "; sub, del, ins: substitutions, deletions, insertions, % of the reference"
    legend = legend if error_types else ""
    console.line(
        "average: plain mean over the columns; +-: its standard error, over "
        f"{blocks_in_words(records)}{legend}"
    )
    for key in flaws:
        console.line(f"{key}: hypotheses {FLAWS[key].title}")


def _published_rows(
    columns: Mapping[tuple[str, str, str], str], published: Sequence[Published]
) -> list[list[str]]:
    """Return published models, a figure below each column of its metric, and their averages."""
    from lorsmerge_cli.results.suite import PUBLISHED

    rows = []
    for model in dict.fromkeys(figure.model for figure in published):
        own = {
            f.key: f.score for f in published if f.model == model and columns.get(f.key) == f.metric
        }
        if own:
            shown = [f"{own[key]}" if key in own else "" for key in columns]
            whole = f"{sum(own.values()) / len(own):.2f}" if len(own) == len(columns) else ""
            rows.append([f"{model} {PUBLISHED}", *shown, whole])
    return rows


def _heard_as(records: Sequence[Record]) -> None:
    """Show which languages each model heard, where it was not told them."""
    rows = []
    for record in records:
        if heard := record.details.get("heard_as"):
            count = sum(heard.values())
            others = [f"{code} {n}" for code, n in heard.items() if code != record.language]
            rows.append(
                [record.model, record.dataset, record.language, record.task,
                 f"{100 * heard.get(record.language, 0) / count:.1f}", ", ".join(others)]
            )  # fmt: skip
    if rows:
        heads = ["model", "data", "spoken", "task", "identified %", "heard instead"]
        console.table(heads, rows, title="language identification")


def _timestamps(records: Sequence[Record]) -> None:
    """Show how near the bounds of segments are to those of the references, where these have some."""
    from lorsmerge_cli.metrics.timestamps import COLLAR, Boundaries, intervals

    rows = []
    for record in records:
        if counts := record.details.get("timestamps"):
            found = Boundaries(**counts)
            error, share = intervals(record.rows)
            rows.append(
                [record.model, record.dataset, record.language, record.task, str(found.segments),
                 str(found.heard), str(found.matched),
                 _decimals(found.error, 3), _decimals(error.standard_error, 3),
                 _decimals(found.share, 1), _decimals(share.standard_error, 1)]
            )  # fmt: skip
    if rows:
        heads = ["model", "data", "language", "task", "segments", "heard", "matched", "error s", "±",
                 f"within {COLLAR:g} s %", "±"]  # fmt: skip
        console.table(heads, rows, title="timestamps")
        console.line(
            "matched: segments heard that overlap one of the reference, one to one; error: mean "
            f"distance of their boundaries; within {COLLAR:g} s: segments of the reference both of whose "
            "boundaries are that near; ±: standard error over speakers, or "
            "over recordings where no speaker is known"
        )


def _silence(records: Sequence[Record]) -> None:
    """Show what each model wrote where nothing is said; such sets have no score."""
    from lorsmerge_cli.metrics.flaws import Invented

    rows = []
    for record in records:
        if record.silent:
            found = Invented.of(record.rows)
            rows.append(
                [record.model, record.dataset, record.language, str(found.utterances),
                 f"{found.seconds / 60:.1f}", str(found.invented), str(found.words),
                 _decimals(found.rate, 2)]
            )  # fmt: skip
    if rows:
        heads = ["model", "data", "language", "utterances", "minutes", "with words", "words",
                 "a minute"]  # fmt: skip
        console.table(heads, rows, title="nothing is said: invented words")


def _decimals(value: float | None, count: int) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{count}f}"


def _mean(records: Sequence[Record], name: str) -> str:
    scores = [record.scores[name].score for record in records if name in record.scores]
    return f"{sum(scores) / len(scores):.2f}" if scores else ""


def _share(records: Sequence[Record], errors: str) -> str:
    """Return errors of one type in percent of the references."""
    length = sum(r.details[key] for r in records for key in ("hits", "substitutions", "deletions"))
    return f"{100 * sum(r.details[errors] for r in records) / length:.2f}" if length else ""


def _sum(records: Sequence[Record], key: str) -> str:
    counts = [record.details[key] for record in records]
    return "" if None in counts else str(sum(counts))


def _details(report: EvalReport) -> None:
    rows = [
        [
            record.model, record.dataset, record.language, record.task, name,
            f"{score.score:.2f}", f"{score.low:.2f} to {score.high:.2f}",
            f"{record.blocks} {record.block_unit}", str(len(record.rows)),
        ]
        for record in report.records
        for name, score in record.scores.items()
    ]  # fmt: skip
    heads = ["model", "data", "language", "task", "metric", "score", "95 %", "judged by",
             "utterances"]  # fmt: skip
    console.table(heads, rows)


def _worst(report: EvalReport, count: int) -> None:
    from lorsmerge_cli.data.languages import text_language
    from lorsmerge_cli.metrics.wer import count_rows, unit_of

    for model in dict.fromkeys(record.model for record in report.records):
        counted = []
        for record in report.records:
            if record.model == model:
                unit = unit_of(text_language(record.language, record.task))
                normalisation = record.details.get("normalisation", "basic")
                counts = count_rows(record.rows, normalisation, unit)
                counted += [(c.errors, row) for c, row in zip(counts, record.rows, strict=True)]
        console.line(f"worst of {model}")
        for errors, row in sorted(counted, key=lambda pair: -pair[0])[:count]:
            console.line(
                f"  {row.id} ({row.language} {row.task}): {errors} errors",
                f"    reference:  {row.reference}",
                f"    hypothesis: {row.hypothesis}",
            )
