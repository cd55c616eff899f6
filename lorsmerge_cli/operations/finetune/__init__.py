"""Fine-tune a model, keep the best epoch, and write it as a model folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lorsmerge_cli.data.conditions import parse_conditions
from lorsmerge_cli.data.hours import Given
from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.inputs import FilePath, path_of, several
from lorsmerge_cli.metrics.normalisation import AUTO
from lorsmerge_cli.operations.finetune.plan import (
    RETAIN_SHARE,
    Averaging,
    DataSource,
    FinetunePlan,
    plan_finetune,
)
from lorsmerge_cli.operations.finetune.run import FinetuneReport, run_finetune
from lorsmerge_cli.recipe.published import recorded_call
from lorsmerge_cli.usage import settings_of

__all__ = [
    "Averaging",
    "DataSource",
    "FinetunePlan",
    "FinetuneReport",
    "data_sources",
    "finetune",
    "plan_finetune",
    "readers",
    "retained_source",
    "run_finetune",
]

READERS = 4  # processes that read audio for a GPU


def finetune(
    base: FilePath,
    data: Sequence[FilePath] | FilePath,
    output: FilePath,
    *,
    dev: Sequence[FilePath] | FilePath = (),
    retain: Sequence[FilePath] | FilePath = (),
    retain_share: float = RETAIN_SHARE,
    split: str = "train",
    language: str | None = None,
    task: str | None = None,
    only: Sequence[str] | str = (),
    where: Sequence[str] | str = (),
    hours: Given = None,
    data_seed: int = 0,
    dev_hours: float | None = None,
    allow_parts: bool = False,
    format: str | None = None,
    average_best: int | None = None,
    average_last: int | None = None,
    dev_beam: int = 1,
    normalisation: str = AUTO,
    delta: FilePath | None = None,
    digests: bool = True,
    report_to: str | None = None,
    workers: int | None = None,
    device: str = "auto",
    dtype: str = "float32",
    resume: bool = False,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    on_scores: Callable[[dict[str, float]], None] = lambda scores: None,
    **settings: Any,
) -> FinetuneReport:
    """Fine-tune a Whisper on one language and task, or on several at once.

    All weights are trained, and the best epoch on the dev set is kept.

    Args:
        base: the pretrained Whisper: a model folder or a Hub id.
        data: manifests, data folders or references to the Hub, to learn from.
        output: the model folder to write.
        dev: data to choose the epoch by; by default the dev split of data that has one.
        retain: data of other languages, tasks or kinds to mix in.
        retain_share: of the hours, in what is learnt from.
        split: of `data`.
        language: of rows that do not name theirs; rows of another one are skipped.
        task: of rows that do not name theirs; rows of another one are skipped.
        only: `COLUMN=VALUE` of the rows to use, as `--only`.
        where: comparisons such as `duration<15` that are true of them, as `--where`.
        hours: about how much of each data set to take, `5` or `ca=5` for a language; all by default.
        data_seed: of the choice of rows for `hours`.
        dev_hours: about how much of each dev set to take.
        allow_parts: use rows that are shorter than their files and give no offset.
        format: of the data, found out by default.
        average_best: number of best epochs to average; 1 by default.
        average_last: number of last epochs to average instead.
        dev_beam: hypotheses in the search when the dev set is decoded.
        normalisation: of the dev set's texts.
        delta: a file for the fine-tune's delta; none by default.
        digests: record hashes of the training data, by which `evaluate` finds it in a test set.
        report_to: `tensorboard` or `wandb`, to show the training there as well.
        workers: processes that read audio ahead; 4 for a GPU, none without.
        device: `auto`, `cpu`, `cuda` or `mps`.
        dtype: to compute in; weights are float32.
        resume: resume the run that was interrupted, if there is one.
        force: replace outputs that exist, and discard an interrupted run.
        progress: called with the steps just done and those in all.
        on_scores: called with the scores before training and those of each epoch.
        settings: the other attributes of `TrainingSettings` by name: `learning_rate=1e-6`,
            `epochs=10`, `steps=None`, `effective_batch=32`, `seed=0` and so on.

    Raises:
        LorsmergeError: see the subclasses; the state of an interrupted run is kept.

    Example:
        >>> report = finetune("base", "test.jsonl", "ft", language="ca", steps=1, effective_batch=2)
        >>> report.output, report.steps
        (PosixPath('ft'), 1)
    """
    averaging = _averaging(average_best, average_last)
    command = recorded_call(
        "finetune", base, several(data), output, dev=several(dev), retain=several(retain),
        retain_share=retain_share if retain else None, split=split, language=language, task=task,
        only=several(only), where=several(where), hours=hours, data_seed=data_seed,
        dev_hours=dev_hours, format=format,
        average_best=average_best, average_last=average_last, dev_beam=dev_beam,
        normalisation=normalisation, delta=delta, dtype=dtype, **settings,
    )  # fmt: skip
    conditions = parse_conditions(several(only), several(where))
    train, held_out = data_sources(
        data, dev, split=split, dev_hours=dev_hours, language=language, task=task, format=format,
        hours=hours, seed=data_seed, allow_parts=allow_parts, conditions=conditions,
    )  # fmt: skip
    plan = plan_finetune(
        Path(base), Path(output), train=train, dev=held_out,
        retain=retained_source(train, retain), retain_share=retain_share,
        settings=settings_of(dtype=dtype, workers=readers(workers, device), **settings),
        averaging=averaging, dev_beam=dev_beam, normalisation=normalisation, device=device,
        delta=path_of(delta), resume=resume, force=force, digests=digests, report_to=report_to,
    )  # fmt: skip
    report = run_finetune(plan, command=command, progress=progress, on_scores=on_scores)
    return replace(report, warnings=[*plan.warnings, *report.warnings])


def _averaging(best: int | None, last: int | None) -> Averaging:
    if best and last:
        raise UsageFault("Give average_best or average_last, not both.")
    return Averaging(last or best or 1, best=not last)


def data_sources(
    data: Sequence[FilePath] | FilePath,
    dev: Sequence[FilePath] | FilePath = (),
    *,
    split: str | None,
    dev_hours: float | None,
    **reading: Any,
) -> tuple[DataSource, DataSource | None]:
    """Return the sources of training and dev rows; the latter is the data's dev split by default.

    Args:
        data: manifests or folders of training data.
        dev: manifests or folders of dev data.
        split: of the data.
        dev_hours: about how much of each dev set to take.
        reading: the other attributes of `DataSource`.
    """
    train = DataSource(tuple(map(Path, several(data))), split, **reading)
    paths = tuple(map(Path, several(dev)))
    if not paths:
        return train, train.with_dev_split(dev_hours)
    return train, replace(train, paths=paths, split="dev", hours=dev_hours)


def retained_source(train: DataSource, retain: Sequence[FilePath] | FilePath) -> DataSource | None:
    """Return the source of data to mix in, whose rows say of which language and task they are."""
    paths = tuple(map(Path, several(retain)))
    return (
        replace(train, paths=paths, language=None, task=None, format=None, conditions=())
        if paths
        else None
    )


def readers(workers: int | None, device: str) -> int:
    """Return how many processes read audio ahead: as many as asked for, or 4 for a GPU."""
    if workers is not None:
        return workers
    return READERS if torch.cuda.is_available() and device != "cpu" else 0
