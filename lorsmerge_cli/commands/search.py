"""`lorsmerge search`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorsmerge_cli import console, options
from lorsmerge_cli.errors import raise_all

if TYPE_CHECKING:
    from lorsmerge_cli.operations.search import Goal, SearchPlan, SearchReport, TrialRow
    from lorsmerge_cli.recipe.space import Value, Values

_space = options.panel("Search space")
_search = options.panel("Search")
_scores = options.panel("Scores")
SHOWN = 10  # trials in the table
EACH = 5  # of that many steps, one is in the table
FEW = 12  # parameters that are shown in a line


def search(
    base: Annotated[str, typer.Argument(
        metavar="BASE", help="The pretrained model: folder or file.")],
    deltas: Annotated[list[str], typer.Argument(
        metavar="DELTA", help="Delta files, or fine-tuned checkpoints.")],
    data: Annotated[list[Path], options.data(
        "--data", metavar="DATA", help="Dev set that merges are scored on: a manifest, a folder, or "
        "hub:ORG/NAME:CONFIG:SPLIT on the Hub (may be repeated).")],
    output: Annotated[Path | None, options.output(
        "--output", "-o", metavar="TOML", help="The recipe for `merge --recipe`: the simplest of "
        "those as good as the best.")] = None,
    svp: Annotated[str | None, _space(
        "--svp", metavar="VALUES", help="Singular value ratios: a list (0.01,0.03,none), LOW:HIGH "
        "or LOW:HIGH:STEP. By default no SVP; 0.01,0.02,0.05 for a --method that takes a ratio.")] = None,
    mp: Annotated[str | None, _space(
        "--mp", metavar="VALUES", help="Magnitude ratios, in the same form. By default no "
        "MP; 0.1,0.2,0.4 for a --method that takes a ratio.")] = None,
    scale: Annotated[str | None, _space(
        "--scale", metavar="VALUES", help="Lambdas, in the same form; by default from a third of "
        "the method's own to ten thirds of it, 0.05:0.5 for sums. Of several methods it is task "
        "arithmetic's: the others get the lambda whose step is as long. With --sampler gradient the "
        "one that lambdas begin at (by default the method's own), or their range.")] = None,
    method: Annotated[list[str] | None, _space(
        "--method", metavar="NAMES", help="The method of all merges, or several to choose from "
        "(lors,ties,tsv_m; may be repeated), with parameters after a colon (lors+iso_c, ties:k=0.3); "
        "one that takes ratios needs their values. By default what each trial's ratios imply. "
        f"{options.WITHOUT_AUDIO}.")] = None,
    per_delta: Annotated[str, _space(
        "--per-delta", metavar="KINDS", help="Comma-separated choice of svp, mp and scale: what is "
        "searched for each delta separately.")] = "",
    by: Annotated[str, _space(
        "--by", metavar="WHAT", help="Comma-separated choice of half, module, depth and part: search "
        "for a lambda for each half of the model (encoder, decoder), for each module (self-attention, "
        "cross-attention, MLP, the rest), for each module of each half with both; depth adds a "
        "beta by which lambda grows from the first block to the last; part adds a lambda of the "
        "low-rank and one of the sparse part of deltas pruned by --svp and --mp. With --per-delta "
        "scale each delta has all of these.")] = "",
    include: options.Include = None,
    exclude: options.Exclude = None,
    trials: Annotated[int | None, _search(
        "--trials", metavar="N", min=1, help="Merges to try, counting those of all workers and "
        "earlier runs; by default 60, the whole grid, or 40 steps of gradient.")] = None,
    sampler: Annotated[str, _search(
        "--sampler", metavar="NAME",
        help="grid, tpe, or cmaes where all values are ranges. gradient learns lambdas, however "
        "many, from the loss of the references of one half of the dev set, and stops by the other "
        "half.")] = "tpe",
    rate: Annotated[float | None, _search(
        "--rate", metavar="X", help="What a step of gradient changes a lambda by, as a share of the "
        "one that it begins at; by default 0.1.")] = None,
    clips: Annotated[int | None, _search(
        "--clips", metavar="N", min=1,
        help="Utterances of a step of gradient; by default 64.")] = None,
    study: Annotated[str | None, _search(
        "--study", metavar="DB",
        help="Storage of the trials, from which a search resumes: a file, which workers on several "
        "machines can share, or a database URL. By default a file beside the output.")] = None,
    name: Annotated[str, _search(
        "--name", metavar="NAME",
        help="Name of this search in the study's file or database.")] = "search",
    worker: Annotated[bool, _search(
        "--worker", help="Run trials of a search that another process leads: the same command "
        "without -o.")] = False,
    pruner: Annotated[str, _search(
        "--pruner", metavar="NAME", help="paired stops trials that are behind the best one by two "
        "standard errors on the same part of the dev set; none stops no trial.")] = "paired",
    objective: Annotated[str | None, _scores(
        "--objective", metavar="NAME",
        help="wer, bleu, or both (a Pareto front); by default what the data has.")] = None,
    rank_by: Annotated[str | None, _scores(
        "--rank-by", metavar="HOW", help="How trials are ranked: by greedy or beam decoding, or by "
        "the loss of the references; by default greedy, and loss with --sampler gradient.")] = None,
    finalists: Annotated[int, _scores(
        "--finalists", metavar="N", min=1, help="Best trials that are scored with --beam on the "
        "whole dev set, beside task arithmetic and the control of the best.")] = 5,
    best: Annotated[bool, _scores(
        "--best", help="Write the best trial even if a simpler recipe is within one standard error "
        "of it.")] = False,
    beam: options.Beam = 20,
    max_tokens: options.MaxTokens = None,
    normalisation: options.Normalise = "auto",
    batch_size: options.BatchSize = None,
    memory: options.MemorySize = None,
    test: Annotated[list[Path] | None, options.data(
        "--test", metavar="DATA", help="Test set to score the written recipe on, once, against the "
        "base (may be repeated).")] = None,
    language: options.Language = None,
    task: options.Task = None,
    only: options.Only = None,
    where: options.Where = None,
    hours: options.Hours = None,
    streaming: options.Streaming = False,
    data_seed: options.DataSeed = 0,
    format: options.Format = None,
    csv: Annotated[Path | None, options.output(
        "--csv", metavar="CSV", help="The table of trials.")] = None,
    plot: Annotated[Path | None, options.output(
        "--plot", metavar="PNG",
        help="Draw the objectives against lambda, r and p (needs matplotlib).")] = None,
    config_dir: options.ConfigDir = None,
    dtype: options.ComputeDtype = "float32",
    device: options.Device = "auto",
    threads: options.Threads = None,
    seed: options.Seed = 0,
    allow_other_base: options.AllowOtherBase = False,
    verbose: options.Verbose = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
) -> None:  # fmt: skip
    """Search for the ratios and scales of a merge that score best on a dev set.

    Writes the simplest recipe that is not distinguishable from the best. Merges are made in memory.
    Finished trials are kept in a file or database: the same command resumes a search that was
    killed, and `search --worker` on other machines joins it.

    Example: lorsmerge search base/ ca.delta de.delta --data dev.jsonl --svp 0.01,0.03 --mp 0.2,0.4 -o best.toml
    """
    from lorsmerge_cli import usage
    from lorsmerge_cli.recipe.search_settings import (
        SearchSettings,
        check_search_outputs,
        check_settings,
        check_space,
    )
    from lorsmerge_cli.recipe.space import default_scales, make_space

    data, test = (usage.streamed(each, hours, streaming, needed=each is data) for each in (data, test))  # fmt: skip
    settings = SearchSettings(
        study=study, name=name, worker=worker, trials=trials, sampler=sampler, rate=rate,
        clips=clips, seed=seed, pruner=pruner, objective=objective, rank_by=rank_by, finalists=finalists,
        beam=beam, batch_size=batch_size, max_tokens=max_tokens, normalisation=normalisation,
        memory=None if memory is None else options.parse_size("--memory", memory),
        dtype=dtype, device=device, best=best, threads=threads, output=output, csv=csv, plot=plot,
        force=force,
        allow_other_base=allow_other_base, config_dir=config_dir,
        language=language, task=task, format=format, hours=hours,
        only=tuple(only or ()), where=tuple(where or ()), data_seed=data_seed,
    )  # fmt: skip
    models = [Path(base), *map(Path, deltas)]
    files = [*models, *data, *(test or ())]
    raise_all(
        usage.check_inputs(
            models, [*data, *(test or ())], format=format, hours=hours, language=language, task=task,
            dtype=dtype, device=device,
        )
        + check_settings(settings)
        + usage.check_paths([config_dir])
        + check_search_outputs(settings, files, front=objective == "both")
    )  # fmt: skip
    texts = {"svp": svp, "mp": mp, "scale": scale or default_scales(method, sampler)}
    space = make_space(
        base, deltas, texts, per_delta, include or (), exclude or (), method, by, sampler
    )
    raise_all(check_space(space, settings))
    from lorsmerge_cli.operations.search import (
        document,
        of_earlier_fronts,
        plan_search,
        run_search,
        write_report,
    )

    plan = plan_search(space, data, test or [], settings)
    console.warning(*plan.warnings)
    if dry_run:
        console.result(_plan_document(plan), lambda: _show_plan(plan))
        return
    with console.progress("search", "trials") as progress:
        report = run_search(
            plan, command=_command(study), progress=progress, on_message=console.note,
            on_trial=lambda row: _tell(plan.goal.names(ranking=True), row),
            on_rate=lambda rate: progress.detail(console.pace(rate, "utterances")),
        )  # fmt: skip
    written = [] if worker else write_report(report)
    console.result(document(report), lambda: _show(report, verbose))
    for path in written:
        console.note(f"wrote {path}")
    for path in of_earlier_fronts(report) if written else ():
        console.warning(f"{path} is of an earlier search and not on this one's front: remove it.")


def _plan_document(plan: SearchPlan) -> dict[str, object]:
    parameters = plan.space.parameters.items()
    return {
        "study": plan.study_shown,
        "objectives": list(plan.goal.names(ranking=True)),
        "parameters": {name: _values(values) for name, values in parameters},
        "trials": plan.trials,
        "known_first": len(plan.points),
        "utterances": len(plan.rows),
        "seconds": plan.seconds,
        "parts": [len(part) for part in plan.parts],
        "test_utterances": len(plan.test),
        "model_bytes": plan.model_size,
    }


def _show_plan(plan: SearchPlan) -> None:
    settings, count = plan.settings, len(plan.rows)
    rows = [[name, _values(values)] for name, values in plan.space.parameters.items()]
    console.table(["parameter", "values"], rows, left=(0, 1))
    if settings.learns:
        _show_steps(plan)
    else:
        console.line(
            f"would try {plan.trials} merges of {len(plan.space.deltas)} deltas by {settings.sampler}, "
            f"{_counted(len(plan.points), 'known point')} first, and keep them in {plan.study_shown}"
        )
        parts = ", ".join(str(len(part)) for part in plan.parts)
        stops = f", and those far behind after less of them ({parts})" if plan.parts[1:] else ""
        console.line(
            f"each is scored on {count} utterances of the dev set, {plan.seconds / 60:.1f} minutes, by "
            f"{plan.goal.rank_by}: {plan.trials * count:,} in all at most{stops}"
        )
    console.line(
        f"then the best {settings.finalists} by beam search ({settings.beam}), what they have to beat, and "
        "the base",
    )
    if plan.test:
        console.line(f"then the recipe and the base on {len(plan.test)} utterances of the test set")
    console.line(
        f"memory: {console.size(plan.model_size)} for the model; pruned deltas and features are kept "
        "as far as there is more"
    )


def _show_steps(plan: SearchPlan) -> None:
    """Show what a search that learns would do: its trials are no merges tried apart."""
    first, second = (len(half) for half in plan.halves)
    beta = " and a beta" if "depth" in plan.space.by else ""
    lambdas = _counted(len(plan.space.lambdas()), "lambda") + beta
    console.line(
        f"would learn {lambdas} for {len(plan.space.deltas)} deltas, from {plan.space.start or 0:g} on, in "
        f"{_counted(plan.trials, 'trial')} at most, and keep them in {plan.study_shown}",
        f"each step learns from {min(plan.clips, first)} of {first} utterances of the dev set; the loss "
        f"of the other {second} says which is best, and when to stop",
    )


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' * (count != 1)}"


def _values(values: Values) -> str:
    if values.choices:
        return ", ".join(map(_value, values.choices))
    step = "" if values.step is None else f" in steps of {values.step:g}"
    return f"{values.low:g} to {values.high:g}{step}"


def _command(study: str | None) -> str:
    """Return the command line without the password of a database."""
    from lorsmerge_cli.recipe.search_settings import shown

    words = ["lorsmerge", *sys.argv[1:]]
    if study is not None:  # a word by itself, or in --study=URL
        words = [word.replace(study, shown(study)) for word in words]
    return shlex.join(words)


def _tell(names: Sequence[str], row: TrialRow) -> None:
    scores = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, row.values, strict=True))
    point = ", ".join(f"{name} {_value(value)}" for name, value in row.point.items())
    at = f" at {point}" if len(row.point) <= FEW else ""
    part = f" on {row.part:.0%} of the dev set, where it was stopped," if row.stopped else ""
    console.note(f"trial {row.number}: {scores}{part}{at}")


def _value(value: Value) -> str:
    if isinstance(value, str):
        return value
    return "none" if value is None else f"{value:g}"


def _show(report: SearchReport, verbose: bool) -> None:
    stopped = sum(row.stopped for row in report.trials)
    if report.plan.settings.worker:
        console.line(
            f"{report.own} trials by this worker, {len(report.trials)} in all ({stopped} stopped early)"
        )
        return
    rows = report.trials if verbose else _best_trials(report)
    if report.plan.settings.learns:
        _show_learned(report, verbose)
    else:
        _show_trials(report, rows)
    _show_finalists(report)
    goal, best = report.plan.goal, report.finalists[0]
    same = sum(row.same_as is not None for row in report.trials)
    repeated = f", {same} repeated" if same else ""
    first = (
        f"best (least {' minus '.join(goal.names(ranking=False))})"
        if len(goal.tasks) > 1
        else "best"
    )
    early = "" if report.plan.settings.learns else f" ({stopped} stopped early{repeated})"
    console.line(
        f"{first}: {best.trial.name} of {len(report.trials)}{early}: {_named(goal, best.values)}"
    )
    _show_chosen(report)
    if report.base is not None:
        console.line(f"the unmerged base: {_named(goal, goal.values(report.base))}")
    if report.test is not None and report.base_test is not None:
        merged, base = (_named(goal, goal.values(s)) for s in (report.test, report.base_test))
        count = len(report.plan.test)
        console.line(f"on the test set of {count} utterances: {merged}; the base {base}")
        for name, test in zip(goal.names(ranking=False), report.tested, strict=True):
            low, high = test.interval.low, test.interval.high
            console.line(
                f"  {name} minus the base's: {test.difference:+.2f} ({low:+.2f} to {high:+.2f}), "
                f"p = {test.p_value:.2g}, {test.blocks} speakers"
            )


def _show_chosen(report: SearchReport) -> None:
    """Show which recipe is written, if it is not that of the best finalist."""
    chosen, best = report.chosen, report.finalists[0]
    if chosen is None or chosen is best:
        return
    why = (
        "the best trial (--best)"
        if report.plan.settings.best
        else f"the best of --method {report.plan.space.method}, and not as good as its control"
        if not chosen.as_good
        else f"the simplest of {sum(each.as_good for each in report.finalists)} within one standard "
        "error of the best"
    )
    values = _named(report.plan.goal, chosen.values)
    console.line(f"written: {chosen.trial.name}, {why}: {values}")


def _named(goal: Goal, values: Sequence[float]) -> str:
    pairs = zip(goal.names(ranking=False), values, strict=True)
    return ", ".join(f"{name} {value:.2f}" for name, value in pairs)


def _best_trials(report: SearchReport) -> list[TrialRow]:
    """Return the trials scored on all of the dev set, the best first, and the known settings."""
    goal = report.plan.goal
    whole = [row for row in report.trials if not row.stopped and row.same_as is None]
    whole.sort(key=lambda row: sum(goal.costs(row.values, ranking=True)))
    return whole[:SHOWN] + [row for row in whole[SHOWN:] if row.title]


def _show_trials(report: SearchReport, rows: Sequence[TrialRow]) -> None:
    goal, parameters = report.plan.goal, list(report.plan.space.parameters)
    heads = ["trial", *parameters, *goal.names(ranking=True), "known as"]
    cells = []
    for row in rows:
        cell = [str(row.number), *(_value(value) for value in row.point.values())]
        part = f" ({row.part:.0%})" if row.stopped else ""
        cell += [f"{value:.4g}{part}" for value in row.values]
        extra = f"stopped after {row.part:.0%}" if row.stopped else ""
        cells.append([*cell, row.title or extra or (f"= {row.same_as}" if row.same_as else "")])
    how = "" if goal.rank_by == "loss" else f" by {goal.rank_by} decoding"
    console.table(heads, cells, title=f"trials{how}")
    if report.plan.space.methods:
        console.line("scale: lambda of task arithmetic whose step is as long as the method's.\n")
    elif any(row.title for row in rows):
        console.line(
            "paper: lambda 0.15, r and p from the middle of its tables; 1/T: the same r and p, lambda "
            "1 / number of deltas; authors' script: lambda 0.2, r 0.01, p 0.2; near: the nearest that the values allow.\n"
        )


def _show_learned(report: SearchReport, verbose: bool) -> None:
    """Show the loss of steps, and the lambdas of the best one: deltas in columns."""
    from lorsmerge_cli.recipe.coefficients import REST
    from lorsmerge_cli.recipe.space import BETA

    goal, space = report.plan.goal, report.plan.space
    best = min(report.trials, key=lambda row: sum(row.values))
    first, second = (len(half) for half in report.plan.halves)
    shown = [
        row for row in report.trials
        if verbose or row in (report.trials[0], best, report.trials[-1]) or not row.number % EACH
    ]  # fmt: skip
    console.line(f"learned from {first} utterances; loss of the {second} that say when to stop:")
    console.table(
        ["trial", *goal.names(ranking=True), ""],
        [
            [str(row.number), *(f"{value:.5g}" for value in row.values),
             "least" if row is best else row.title]
            for row in shown
        ],
    )  # fmt: skip
    lambdas = space.lambdas()
    owners = list(dict.fromkeys(owner for owner, _, _ in lambdas.values()))
    kinds = list(dict.fromkeys((group, part) for _, group, part in lambdas.values()))
    of = {key: _value(best.point[name]) for name, key in lambdas.items()}
    names = ["all deltas" if owner is None else Path(space.deltas[owner]).stem for owner in owners]
    rows = [
        [group if space.groups or group != REST else "", part.replace("_", "-"),
         *(of[owner, group, part] for owner in owners)]
        for group, part in kinds
    ]  # fmt: skip
    console.line(f"lambda in trial {best.number}:")
    console.table(["", "", *names], rows)
    if BETA in best.point:
        console.line(f"beta: {_value(best.point[BETA])}\n")
    if best is report.trials[-1] and len(report.trials) == report.plan.trials:
        console.note(
            "the loss was still falling at the last trial: the same command with a larger --trials, and "
            "--force, goes on from there"
        )
    _tell_ends(report, best)


def _tell_ends(report: SearchReport, best: TrialRow) -> None:
    from lorsmerge_cli.operations.search import at_an_end

    space = report.plan.space
    if found := at_an_end(report.plan, best.point):
        low, high = space.values["scale"].low, space.values["scale"].high
        console.warning(
            f"{', '.join(found)} went to an end of the range ({low:g} to {high:g}): more data, or a "
            "wider --scale LOW:HIGH, would tell whether that is right."
        )


def _show_finalists(report: SearchReport) -> None:
    goal, beam = report.plan.goal, report.plan.settings.beam
    groups = list(report.finalists[0].scores)
    both = len(goal.tasks) == 2
    names = goal.names(ranking=False)
    heads = ["", *names, *(f"{name} minus best" for name in names), "as good", *groups,
             *(["front"] if both else [])]  # fmt: skip
    rows = [
        [
            finalist.trial.name,
            *(f"{value:.2f}" for value in finalist.values),
            *(
                "" if finalist is report.finalists[0] else
                f"{d.difference:+.2f} ± {d.interval.standard_error:.2f}" for d in finalist.differences
            ),
            "=" if finalist.as_good else "",
            *(f"{finalist.scores[group]:.2f}" for group in groups),
            *(["*" if finalist.on_front else ""] if both else []),
        ]
        for finalist in report.finalists
    ]  # fmt: skip
    console.table(heads, rows, title=f"finalists on the whole dev set, beam {beam}")
    blocks = max(finalist.blocks for finalist in report.finalists[0].differences)
    console.line(
        f"±: standard error of the paired difference, over {blocks} speakers (or utterances without "
        "one). =: within one standard error of the best."
    )
    if any(finalist.trial.name.startswith("control of ") for finalist in report.finalists):
        console.line(
            "control: task arithmetic with one lambda for all, and a step of the same length."
        )
    console.line("")
