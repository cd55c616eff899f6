"""Decode test sets with models, and score the hypotheses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorsmerge_cli.data.conditions import parse_conditions
from lorsmerge_cli.data.hours import Given
from lorsmerge_cli.errors import raise_all
from lorsmerge_cli.inputs import FilePath, path_of, several
from lorsmerge_cli.metrics import check_metrics
from lorsmerge_cli.metrics.metric import Scoring
from lorsmerge_cli.metrics.normalisation import AUTO as BY_LANGUAGE
from lorsmerge_cli.operations.eval.hearing import Hearing
from lorsmerge_cli.operations.eval.inputs import (
    check_languages,
    open_models,
    planned_sets,
    read_test_set,
)
from lorsmerge_cli.operations.eval.run import rescore, run_evaluation
from lorsmerge_cli.results.document import EvalReport, TestSet
from lorsmerge_cli.results.suite import check_suite_data, read_suite
from lorsmerge_cli.speech.engines import DEFAULT
from lorsmerge_cli.usage import Named, parse_shard

__all__ = [
    "Hearing",
    "check_languages",
    "evaluate",
    "open_models",
    "planned_sets",
    "read_test_set",
    "rescore",
    "run_evaluation",
]


def evaluate(
    models: Named,
    data: Named = (),
    output: FilePath | None = None,
    *,
    suite: FilePath | None = None,
    split: str | None = "test",
    language: str | None = None,
    task: str | None = None,
    only: Sequence[str] | str = (),
    where: Sequence[str] | str = (),
    hours: Given = None,
    data_seed: int = 0,
    allow_missing: bool = False,
    shard: str | None = None,
    long: bool = False,
    condition: bool = True,
    allow_parts: bool = False,
    format: str | None = None,
    beam: int = 20,
    batch_size: int | None = None,
    max_tokens: int | None = None,
    memory: int | None = None,
    engine: str = DEFAULT,
    dtype: str = "float32",
    device: str = "auto",
    config_dir: FilePath | None = None,
    apply: Sequence[FilePath] | FilePath = (),
    scale: float | None = None,
    coef: Sequence[str] | str = (),
    method: str | None = None,
    normalisation: str = BY_LANGUAGE,
    metrics: str | Sequence[str] = (),
    compare: tuple[str, str] | None = None,
    samples: int = 10_000,
    seed: int = 0,
    hypotheses: FilePath | None = None,
    trn: FilePath | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EvalReport:
    """Score models on speech recognition and translation into English.

    Args:
        models: folders, files of weights or Hub ids; name -> model names them, as does `NAME=PATH`.
        data: test sets: manifests, data folders or references to the Hub, named likewise.
        output: the results file; none by default.
        suite: TOML file of further test sets; what it says of one comes before the arguments here.
        split: of data that has several.
        language: of rows that do not name theirs; others are skipped. `auto`: as each model hears.
        task: of rows that do not name theirs; rows of another one are skipped.
        only: `COLUMN=VALUE` of the rows to use, as `--only`.
        where: comparisons such as `duration<15` that are true of them, as `--where`.
        hours: about how much of each test set to take, `5` or `ca=5` for a language; all by default.
        data_seed: of the choice of rows for `hours`.
        allow_missing: score the other rows if audio is damaged or much of it is missing.
        long: hear rows of any length, as `transcribe_recordings` does; long ones are dropped else.
        condition: as there.
        shard: `2/8` to decode the second of eight parts of each test set.
        allow_parts: use rows that are shorter than their files and give no offset.
        format: of the data, found out by default.
        beam: hypotheses in the search; 1 is greedy. The paper's is 20.
        batch_size: utterances at a time; by memory by default.
        max_tokens: most tokens of a hypothesis; the model's limit by default.
        memory: bytes that the process may use in all; no limit by default.
        engine: that decodes: `torch`, or `ct2` for CTranslate2, in which a few texts differ.
        dtype: `float32`, `float16`, `bfloat16`, `auto` (float16 on CUDA), or with `ct2` also `int8`.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        config_dir: model folder or Hub id to take config and tokenizer from, for a bare file.
        apply: deltas to add to the one model, in memory.
        scale: lambda of each applied delta; the method's by default.
        coef: rules of factors that it is multiplied by, as in `merge`.
        method: how deltas are applied, a method without ratios; task arithmetic by default.
        normalisation: of texts before error rates are computed.
        metrics: further metrics, such as `comet`.
        compare: names of two models for a paired test.
        samples: random sign flips of that test, if there are more than 12 speakers.
        seed: of the sign flips.
        hypotheses: JSON lines to write what is decoded to, and to resume from.
        trn: folder for sclite's transcripts.
        force: replace a results file that exists.
        progress: called with the utterances just decoded and those in all.

    Raises:
        LorsmergeError: see the subclasses; what was decoded stays in `hypotheses`.

    Example:
        >>> report = evaluate({"base": "base", "lors": "ca"}, "test.jsonl", beam=1)
        >>> sorted({(record.model, record.task) for record in report.records})
        [('base', 'asr'), ('base', 'st'), ('lors', 'asr'), ('lors', 'st')]
    """
    found = None if suite is None else read_suite(Path(suite))
    raise_all(check_metrics(several(metrics)) + check_suite_data(found, split))
    hearing, language = Hearing.of(long, language, condition)
    reading = {
        "allow_missing": allow_missing, "split": split, "language": language, "task": task,
        "hours": hours, "format": format, "seed": data_seed, "allow_parts": allow_parts, "other_languages": True,
        "shard": parse_shard(shard), "conditions": parse_conditions(several(only), several(where)),
    }  # fmt: skip
    sources = open_models(
        models, path_of(config_dir), list(map(Path, several(apply))), method, scale, several(coef)
    )
    tests, told = _read(planned_sets(data, found, reading), hearing.longest(sources), hours)
    report = run_evaluation(
        sources, tests, beam=beam, batch_size=batch_size,
        scoring=Scoring(normalisation, samples, seed, several(metrics)), max_tokens=max_tokens,
        suite=found and found.scored(whole=hours is None and not only and not where),
        memory=memory, engine=engine, dtype=dtype, device=device, hearing=hearing,
        hypotheses=path_of(hypotheses), output=path_of(output), force=force, trn=path_of(trn), compared=compare, progress=progress,
    )  # fmt: skip
    return replace(report, warnings=(*told, *report.warnings))


def _read(
    planned: Sequence[tuple[str, Path, dict[str, Any]]], longest: float, hours: Given
) -> tuple[list[TestSet], list[str]]:
    """Return the test sets, and warnings."""
    read = [read_test_set(name, path, longest, **own) for name, path, own in planned]
    tests = [test for test, _, _ in read]
    check_languages(hours, tests)
    return tests, [warning for _, warnings, _ in read for warning in warnings]
