"""Settings of a search and their checks, which do not load torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorsmerge_cli.data.conditions import Condition, parse_conditions
from lorsmerge_cli.data.hours import Given
from lorsmerge_cli.data.languages import TASKS
from lorsmerge_cli.errors import LorsmergeError, UsageFault
from lorsmerge_cli.metrics import METRICS, metrics_of
from lorsmerge_cli.metrics.normalisation import AUTO, check_choice
from lorsmerge_cli.outputs import check_output
from lorsmerge_cli.pictures import check_picture
from lorsmerge_cli.quoting import command
from lorsmerge_cli.recipe.space import GRADIENT, Space

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

SAMPLERS = ("grid", "tpe", "cmaes", GRADIENT)
PRUNERS = ("paired", "none")
RANKINGS = ("greedy", "beam", "loss")
OBJECTIVES = {  # the reported metric of each task, and both at once
    key: (metric.task,)
    for key, metric in METRICS.items()
    if metric is metrics_of("", metric.task)[0]
} | {"both": TASKS}
TRIALS, STEPS = 60, 40  # the latter of lambdas that are learned
RATE, CLIPS = 0.1, 64


@dataclass(frozen=True)
class SearchSettings:
    """How to search.

    Attributes:
        study: a file, or a database URL; None for a file beside the output.
        name: of the study in it.
        worker: do trials of a study that another process has begun.
        trials: in all; None for the whole grid, 40 that are learned, or 60.
        sampler: of SAMPLERS.
        rate: of a learned lambda, what a step changes at most, as a share of the lambda that it
            begins at; None for RATE.
        clips: utterances that such a step learns from; None for CLIPS.
        seed: of everything random.
        pruner: of PRUNERS.
        objective: of OBJECTIVES; None for what the data has.
        rank_by: of RANKINGS; None for greedy, and for loss where lambdas are learned.
        finalists: trials that are scored by beam search on the whole dev set.
        beam, batch_size, max_tokens: of their decoding, as in `DecodingSettings`.
        memory: bytes that each process may use in all; None for what the machine and the job have.
        normalisation: of error rates, one of `CHOICES`.
        dtype: the model computes in.
        device: as in `resolve_device`.
        threads: tensors in flight; None for one per core.
        output, csv, plot: to be written.
        best: write the best trial's recipe, not the simplest of those as good.
        force: replace outputs that exist.
        allow_other_base: take deltas of another base.
        config_dir: model folder with config and tokenizer, for a base that is a bare file.
        language, task: of data that does not say; rows that say another are skipped.
        format: of the data; None to find it out.
        only, where: conditions that its rows have to meet, as `parse_conditions` takes them.
        hours: about how much of each data set to take; None for all.
        data_seed: another one takes other rows for `hours`.
    """

    study: str | None = None
    name: str = "search"
    worker: bool = False
    trials: int | None = None
    sampler: str = "tpe"
    rate: float | None = None
    clips: int | None = None
    seed: int = 0
    pruner: str = "paired"
    objective: str | None = None
    rank_by: str | None = None
    finalists: int = 5
    beam: int = 20
    batch_size: int | None = None
    max_tokens: int | None = None
    memory: int | None = None
    normalisation: str = AUTO
    dtype: str = "float32"
    device: str = "auto"
    threads: int | None = None
    output: Path | None = None
    csv: Path | None = None
    plot: Path | None = None
    best: bool = False
    force: bool = False
    allow_other_base: bool = False
    config_dir: Path | None = None
    language: str | None = None
    task: str | None = None
    format: str | None = None
    only: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    hours: Given = None
    data_seed: int = 0

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What the rows of the data have to meet."""
        return parse_conditions(self.only, self.where)

    @property
    def learns(self) -> bool:
        """Whether lambdas are learned by gradient."""
        return self.sampler == GRADIENT

    @property
    def ranking(self) -> str:
        """How trials are ranked, of RANKINGS."""
        return self.rank_by or ("loss" if self.learns else "greedy")


def is_url(study: str) -> bool:
    """Return whether `--study` names a database and not a file."""
    return "://" in study


def _parse_url(study: str) -> URL | None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return make_url(study)
    except (SQLAlchemyError, ValueError):
        return None


def shown(study: str) -> str:
    """Return a file as it is, and a URL without its password."""
    if not is_url(study):
        return study
    url = _parse_url(study)
    if url is None:
        return study.partition("://")[0] + "://..."
    secret = {key: "..." for key in url.query if "password" in key.lower()}
    return url.update_query_dict(secret).render_as_string(hide_password=True)


def check_study(study: str) -> list[LorsmergeError]:
    """Return a fault where `--study` is neither a file's path nor a database URL."""
    if not is_url(study) or _parse_url(study) is not None:
        return []
    return [
        UsageFault(
            f"--study {shown(study)} is not a database URL.",
            "Write DIALECT+DRIVER://USER:PASSWORD@HOST/NAME, and special characters of a password "
            "as %40 for @, %3A for : and so on.",
        )
    ]


def check_settings(settings: SearchSettings) -> list[LorsmergeError]:
    """Return the faults of a search's settings that do not depend on its space."""
    faults: list[LorsmergeError] = [*check_choice(settings.normalisation)]
    try:
        parse_conditions(settings.only, settings.where)
    except UsageFault as fault:
        faults.append(fault)
    for option, value, known in (
        ("--sampler", settings.sampler, SAMPLERS),
        ("--pruner", settings.pruner, PRUNERS),
        ("--objective", settings.objective, tuple(OBJECTIVES)),
        ("--rank-by", settings.rank_by, RANKINGS),
    ):
        if value is not None and value not in known:
            faults.append(UsageFault(f"{option} {value}: unknown.", f"Use {', '.join(known)}."))
    faults += _learning_faults(settings)
    if settings.worker and any([settings.output, settings.csv, settings.plot]):
        remedy = "Omit -o, --csv and --plot: the search has them."
        faults.append(UsageFault("A --worker writes nothing.", remedy))
    if settings.worker and settings.study is None:
        faults.append(UsageFault("A --worker needs --study, the file or database of the search."))
    if not settings.worker and settings.output is None:
        faults.append(UsageFault("There is no output.", "Write -o best.toml."))
    if settings.output is not None and settings.output.suffix != ".toml":
        remedy = f"Write {command('-o', settings.output.with_suffix('.toml'))}."
        faults.append(UsageFault(f"{settings.output}: a recipe is written as .toml.", remedy))
    return faults + check_study(settings.study or "")


def _learning_faults(settings: SearchSettings) -> list[LorsmergeError]:
    """Return the faults of settings of lambdas that are learned, or that are for those alone."""
    faults: list[LorsmergeError] = []
    if not settings.learns:
        given = {"--rate": settings.rate, "--clips": settings.clips}
        return [
            UsageFault(f"{option} is for --sampler {GRADIENT}.", "Omit it.")
            for option, value in given.items()
            if value is not None
        ]
    if settings.worker:
        what = f"--sampler {GRADIENT} goes step by step, and has no work for a --worker."
        faults.append(UsageFault(what, "Run it in one process."))
    if settings.ranking != "loss":
        what = f"--rank-by {settings.rank_by}: --sampler {GRADIENT} ranks by loss."
        faults.append(UsageFault(what, "Omit it: finalists are decoded."))
    if settings.rate is not None and not 0 < settings.rate <= 1:
        what = f"--rate {settings.rate:g} is not above 0 and at most 1."
        faults.append(UsageFault(what, "It is a share of lambda: 0.1, say."))
    if settings.clips is not None and settings.clips < 1:
        faults.append(UsageFault(f"--clips {settings.clips} is not positive.", "Give 64, say."))
    return faults


def check_space(space: Space, settings: SearchSettings) -> list[LorsmergeError]:
    """Return the faults of a space: nothing to choose from, or too much for the sampler."""
    faults: list[LorsmergeError] = []
    if not space.values:
        remedy = "Give --scale 0.05:0.5, say, --svp or --mp."
        faults.append(UsageFault("There is nothing to search.", remedy))
    ranges = [values for values in space.parameters.values() if not values.choices]
    if settings.sampler == "cmaes" and (
        len(ranges) < len(space.parameters)
        or (len(ranges) < 2 and not space.by)  # whose groups the base tells
        or settings.objective == "both"
    ):
        faults.append(
            UsageFault(
                "--sampler cmaes takes one objective, and two or more parameters that are ranges.",
                "Write --svp 0.01:0.05 --mp 0.1:0.6 --scale 0.05:0.5, say, or use --sampler tpe.",
            )
        )
    if settings.sampler == "grid":
        try:
            space.grid()
        except UsageFault as fault:
            faults.append(fault)
    return faults


def study_of(settings: SearchSettings) -> str:
    """Return the study's file or database URL: the one given, or a journal beside the output.

    Where there is a `.db` beside the output, an earlier version's search, it is that.
    """
    output = settings.output or Path("search")
    earlier = output.with_suffix(".db")
    beside = earlier if earlier.exists() else output.with_suffix(".journal")
    return settings.study or str(beside)


def recipe_files(settings: SearchSettings) -> list[Path]:
    """Return the file of the best recipe, and those for the others of a Pareto front."""
    if settings.output is None:
        return []
    stem, suffix = settings.output.stem, settings.output.suffix
    others = [f"{stem}.{n}{suffix}" for n in range(2, settings.finalists + 1)]
    return [settings.output, *(settings.output.with_name(name) for name in others)]


def check_search_outputs(
    settings: SearchSettings, inputs: Sequence[Path], *, front: bool
) -> list[LorsmergeError]:
    """Return what keeps a search's outputs from being written.

    Args:
        settings: with the outputs' names.
        inputs: files and folders that are read.
        front: whether the recipes of a Pareto front are written, not one alone.
    """
    faults: list[LorsmergeError] = []
    study = study_of(settings)
    inputs = [*inputs, *([] if is_url(study) else [Path(study)])]
    if settings.csv is not None and settings.csv in recipe_files(settings):
        faults.append(UsageFault(f"--csv {settings.csv} is the recipe's file.", "Name another."))
    written = recipe_files(settings)[: None if front else 1]
    for path in [*written, *([settings.csv] if settings.csv else [])]:
        faults += check_output(path, inputs=inputs, size=0, force=settings.force)
    if settings.plot is not None:
        faults += check_picture(settings.plot, inputs, force=settings.force)
    return faults
