"""How to search, and what of that is wrong: known without loading torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorsmerge_cli.data.languages import TASKS
from lorsmerge_cli.errors import LorsmergeError, UsageFault
from lorsmerge_cli.metrics import METRICS, metrics_of
from lorsmerge_cli.metrics.normalisation import AUTO, check_choice
from lorsmerge_cli.outputs import check_output
from lorsmerge_cli.pictures import check_picture
from lorsmerge_cli.quoting import command
from lorsmerge_cli.recipe.space import Space

SAMPLERS = ("grid", "tpe", "cmaes")
PRUNERS = ("paired", "none")
RANKINGS = ("greedy", "beam", "loss")
OBJECTIVES = {  # the reported metric of each task, and both at once
    key: (metric.task,)
    for key, metric in METRICS.items()
    if metric is metrics_of("", metric.task)[0]
} | {"both": TASKS}
TRIALS = 60
SCALES = "0.05:0.5"  # lambdas that a search may choose where it is not told


@dataclass(frozen=True)
class SearchSettings:
    """How to search.

    Attributes:
        study: a file, or a database URL; None for a file beside the output.
        name: of the study in it.
        worker: take part in a study that another process has begun.
        trials: in all; None for the whole grid, or 60.
        sampler: of SAMPLERS.
        seed: of everything random.
        pruner: of PRUNERS.
        objective: of OBJECTIVES; None for what the data has.
        rank_by: of RANKINGS.
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
        companions: model folder of a base that is a bare file.
    """

    study: str | None = None
    name: str = "search"
    worker: bool = False
    trials: int | None = None
    sampler: str = "tpe"
    seed: int = 0
    pruner: str = "paired"
    objective: str | None = None
    rank_by: str = "greedy"
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
    companions: Path | None = None


@dataclass(frozen=True)
class DataSettings:
    """How data sets are read, as in `load_data`."""

    language: str | None = None
    task: str | None = None
    format: str | None = None
    hours: float | None = None
    seed: int = 0


def is_url(place: str) -> bool:
    """Whether `--study` names a database and no file."""
    return "://" in place


def shown(place: str) -> str:
    """A file, or a URL without its password."""
    if not is_url(place):
        return place
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        url = make_url(place)
    except (SQLAlchemyError, ValueError):
        return place.partition("://")[0] + "://..."
    secret = {key: "..." for key in url.query if "password" in key.lower()}
    return url.update_query_dict(secret).render_as_string(hide_password=True)


def check_study(place: str) -> list[LorsmergeError]:
    """Return a fault where `--study` is neither a file's path nor a database URL."""
    if not is_url(place):
        return []
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        make_url(place)
    except (SQLAlchemyError, ValueError):
        return [
            UsageFault(
                f"--study {shown(place)} is no database URL.",
                "Write DIALECT+DRIVER://USER:PASSWORD@HOST/NAME, and special characters of a password "
                "as %40 for @, %3A for : and so on.",
            )
        ]
    return []


def check_settings(settings: SearchSettings) -> list[LorsmergeError]:
    """Return what is wrong with the settings of a search, whatever it searches."""
    faults: list[LorsmergeError] = [*check_choice(settings.normalisation)]
    for option, value, known in (
        ("--sampler", settings.sampler, SAMPLERS),
        ("--pruner", settings.pruner, PRUNERS),
        ("--objective", settings.objective, tuple(OBJECTIVES)),
        ("--rank-by", settings.rank_by, RANKINGS),
    ):
        if value is not None and value not in known:
            faults.append(UsageFault(f"{option} {value}: unknown.", f"Use {', '.join(known)}."))
    written = [settings.output, settings.csv, settings.plot]
    if settings.worker and any(written):
        faults.append(
            UsageFault(
                "A --worker writes nothing.", "Leave out -o, --csv and --plot: the search has them."
            )
        )
    if settings.worker and settings.study is None:
        faults.append(
            UsageFault("A --worker needs --study, the file or database that it takes part in.")
        )
    if not settings.worker and settings.output is None:
        faults.append(UsageFault("There is no output.", "Write -o best.toml."))
    if settings.output is not None and settings.output.suffix != ".toml":
        faults.append(
            UsageFault(
                f"{settings.output}: a recipe is written as .toml.",
                f"Write {command('-o', settings.output.with_suffix('.toml'))}.",
            )
        )
    return faults + (check_study(settings.study) if settings.study is not None else [])


def check_space(space: Space, settings: SearchSettings) -> list[LorsmergeError]:
    """Return what a sampler cannot do with what may be chosen."""
    faults: list[LorsmergeError] = []
    if not space.values:
        faults.append(
            UsageFault("There is nothing to search.", "Give --scale 0.05:0.5, say, --svp or --mp.")
        )
    ranges = [values for values in space.parameters.values() if not values.choices]
    if settings.sampler == "cmaes" and (
        len(ranges) < len(space.parameters) or len(ranges) < 2 or settings.objective == "both"
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
    """Return the study's file or database: the one asked for, or a journal beside the output.

    A database there is that of a search which an earlier version began.
    """
    output = settings.output or Path("search")
    earlier = output.with_suffix(".db")
    beside = earlier if earlier.exists() else output.with_suffix(".journal")
    return settings.study or str(beside)


def recipe_files(settings: SearchSettings) -> list[Path]:
    """The best recipe's, and those that the others of a Pareto front would be written to."""
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
        settings: that name them.
        inputs: files and folders that are read.
        front: whether the recipes of a Pareto front are written, not one alone.
    """
    faults: list[LorsmergeError] = []
    inputs = list(inputs)
    study = study_of(settings)
    if not is_url(study):
        inputs.append(Path(study))
    if settings.csv is not None and settings.csv in recipe_files(settings):
        faults.append(UsageFault(f"--csv {settings.csv} is the recipe's file.", "Name another."))
    written = recipe_files(settings)[: None if front else 1]
    for path in [*written, *([settings.csv] if settings.csv else [])]:
        faults += check_output(path, inputs=inputs, size=0, force=settings.force)
    if settings.plot is not None:
        faults += check_picture(settings.plot, inputs, force=settings.force)
    return faults
