"""Statistics that a merge makes itself: each fine-tune hears audio before its delta is weighed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorsmerge_cli.calibration.file import StatisticsFile
from lorsmerge_cli.deltas.task_vector import TaskVector
from lorsmerge_cli.errors import LorsmergeError, UsageFault, raise_all
from lorsmerge_cli.operations.merge.plan import MergePlan
from lorsmerge_cli.outputs import check_output
from lorsmerge_cli.recipe.calibration import Calibration
from lorsmerge_cli.recipe.record import learnt_by

if TYPE_CHECKING:  # it loads transformers, which merges without audio do not need
    from lorsmerge_cli.operations.stats import StatsPlan
    from lorsmerge_cli.speech.source import ModelSource

ASKED = re.compile(r"and --(?:language|task) (\S+) was given")


def statistics_folder(output: Path) -> Path:
    """Return where a merge keeps the statistics that it makes: beside its output.

    Example:
        >>> statistics_folder(Path("runs/merged")), statistics_folder(Path("m.safetensors"))
        (PosixPath('runs/merged-stats'), PosixPath('m-stats'))
    """
    suffix = output.suffix if output.suffix.lower() == ".safetensors" else ""
    return output.with_name(f"{output.name.removesuffix(suffix)}-stats")


def plan_calibration(
    plan: MergePlan, calibration: Calibration | None, config_dir: Path | None = None
) -> MergePlan:
    """Plan the statistics of each delta's fine-tune, which are those that `stats` makes.

    The fine-tune is the base with the delta added. It hears rows of the delta's language and task, as
    far as the delta records one; rows that name neither count as such.

    Args:
        plan: of the merge, with `calibrated`.
        calibration: the audio; None for a merge that needs none.
        config_dir: as in `merge`.

    Raises:
        LorsmergeError: every fault of the data, and of the files that are to be written.
    """
    if calibration is None:
        return plan
    from lorsmerge_cli.speech.source import find_model

    base = find_model(plan.base.path, config_dir=config_dir)
    made: dict[str, StatsPlan] = {}
    faults: list[LorsmergeError] = []
    for name, vector, identity in zip(
        calibration.names, plan.vectors, plan.vector_identities, strict=True
    ):
        if identity not in made:  # a delta that is given twice
            try:
                made[identity] = _planned(plan, calibration, base, name, vector)
            except LorsmergeError as fault:
                faults.append(fault)
    raise_all(faults)
    *_, last = made.values()
    size = plan.output_size + sum(each.layout.nbytes for each in made.values() if not each.made)
    raise_all(check_output(last.output, inputs=[], size=size, force=True))
    return replace(
        plan,
        calibration=tuple(made[identity] for identity in plan.vector_identities),
        warnings=(*plan.warnings, *(text for each in made.values() for text in each.warnings)),
    )


def _planned(
    plan: MergePlan, calibration: Calibration, base: ModelSource, name: str, vector: TaskVector
) -> StatsPlan:
    from lorsmerge_cli.operations.stats import plan_stats_of
    from lorsmerge_cli.speech.source import finetune_of

    learnt = learnt_by(vector)
    language, task = (_only({pair[n] for pair in learnt}) for n in (0, 1))
    try:
        found = plan_stats_of(
            finetune_of(base, vector), calibration.data[name],
            statistics_folder(plan.output) / f"{name}.stats",
            kind=plan.chosen_method.statistics, half=calibration.half, device=str(plan.device),
            force=plan.force, reuse=True, shared=True, split="train", language=language, task=task,
            hours=calibration.hours,
        )  # fmt: skip
    except UsageFault as fault:
        what = ASKED.sub(r"and the delta's is \1", fault.what)
        raise UsageFault(
            f"--calibrate, for the delta {name}: {what}",
            f"Give audio of its language by --calibrate {name}=DATA, or take its statistics by `lorsmerge stats`, "
            "which has more options, and give those of all with --stats.",
        ) from None
    return replace(found, warnings=tuple(f"{name}: {text}" for text in found.warnings))


def _only(values: set[str]) -> str | None:
    """Return the one value that there is; None for several, or where it is not known."""
    return values.pop() or None if len(values) == 1 else None


def calibrated(
    plan: MergePlan,
    command: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MergePlan:
    """Make the statistics that a merge needs, and return its plan with them.

    Files are kept, one for each fine-tune, and those that are there already are used as they are.

    Args:
        plan: by `plan_calibration`; one without statistics to make is returned as it is.
        command: for their record.
        progress: called with the utterances just decoded or heard and those in all.

    Raises:
        LorsmergeError: as `stats`; the statistics that were finished before stay.
    """
    if not plan.calibration:
        return plan
    wanted = {each.output: each for each in plan.calibration}
    total = sum(each.steps for each in wanted.values())
    for each in wanted.values():
        if not each.made:
            from lorsmerge_cli.operations.stats import run_stats

            run_stats(each, command, lambda done, _: progress(done, total))
    files = {output: StatisticsFile(output) for output in wanted}
    statistics = tuple(files[each.output] for each in plan.calibration)
    # not named before they are there: a path that is not may be an id on the Hub
    recipe = replace(plan.recipe, stats=tuple(map(str, wanted)))
    return replace(plan, recipe=recipe, calibration=(), statistics=statistics)
