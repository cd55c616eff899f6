"""Option types that several commands share, so that they read the same everywhere."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from lorsmerge_cli.core.combining import COMBINERS, PAPER_SCALE
from lorsmerge_cli.core.methods import METHODS
from lorsmerge_cli.core.pruning import PRUNERS
from lorsmerge_cli.errors import UsageFault

METHOD_NAMES = "; ".join(f"{name}: {method.title}" for name, method in METHODS.items())
WITHOUT_AUDIO = "; ".join(
    f"{name}: {method.title}" for name, method in METHODS.items() if not method.statistics
)
WITHOUT_RATIOS = "; ".join(
    f"{name}: {method.title}"
    for name, method in METHODS.items()
    if not method.ratios and not method.statistics
)
_ONES = [name for name, method in METHODS.items() if method.scale != PAPER_SCALE]
SCALES = f"{PAPER_SCALE} by default, 1 for {', '.join(_ONES)}"
PRUNER_NAMES, COMBINER_NAMES = ", ".join(PRUNERS), ", ".join(COMBINERS)
UNITS = {"K": 1, "M": 2, "G": 3, "T": 4}


def panel(title: str) -> partial[Any]:
    """Return `typer.Option` for the options that help shows under one heading."""
    return partial(typer.Option, rich_help_panel=title)


pruning, output, machine = panel("Pruning"), panel("Output"), panel("Machine")
data, decoding, scoring = panel("Data"), panel("Decoding"), panel("Scoring")

# fmt: off
Svp = Annotated[float | None, pruning(
    "--svp", metavar="R", help="Singular value pruning: share of the singular triplets that is "
    "kept (paper: 0.01 to 0.05).")]
Mp = Annotated[float | None, pruning(
    "--mp", metavar="P",
    help="Magnitude pruning: share of the elements that is kept (paper: 0.1 to 0.6).")]
Include = Annotated[list[str] | None, pruning(
    "--include", metavar="PATTERN",
    help="Prune these 2-D tensors as well (shell pattern; may be repeated).")]
Exclude = Annotated[list[str] | None, pruning(
    "--exclude", metavar="PATTERN",
    help="Merge these tensors unpruned (shell pattern; may be repeated).")]
Output = Annotated[Path, output("--output", "-o", metavar="PATH", help="File to write.")]
Force = Annotated[bool, output(
    "--force", "-f",
    help="Replace outputs that exist; a folder only if every file in it is as lorsmerge wrote it.")]
Dtype = Annotated[str | None, output(
    "--dtype", metavar="DTYPE",
    help="float32, float16 or bfloat16 for the output; by default the input's.")]
ConfigDir = Annotated[Path | None, typer.Option(
    "--config", metavar="FOLDER", help="Model folder or Hub id to take config and tokenizer from, "
    "for a bare file of weights.")]
Processor = Annotated[Path | None, typer.Option(
    "--config", metavar="FOLDER",
    help="Model folder or Hub id to take tokenizer and feature extractor from, for a folder "
    "without them; a Trainer's checkpoint-N uses those of its parent folder.")]
StripPrefix = Annotated[str, machine(
    "--strip-prefix", metavar="PREFIX",
    help="Prefix that only the fine-tune's tensor names have, or only the base's: module. of "
    "DataParallel, _orig_mod. of torch.compile, model. of a whole model.")]
Device = Annotated[str, machine(
    "--device", metavar="DEVICE", help="Device to compute on: auto, cpu, cuda, cuda:N or mps.")]
Threads = Annotated[int | None, machine(
    "--threads", metavar="N", min=1, help="Tensors processed at a time; by default one per core. "
    "The result does not depend on it.")]
Split = Annotated[str | None, data(
    "--split", metavar="NAME", help="train, dev, test or another that the data has.")]
Language = Annotated[str | None, data(
    "--language", metavar="CODE", help="Spoken language (ca, Catalan) of data that does not name "
    "it; rows that name another are skipped.")]
Task = Annotated[str | None, data(
    "--task", metavar="TASK", help="asr or st (translation into English) of data that does not "
    "name it; rows that name the other are skipped.")]
Hours = Annotated[list[str] | None, data(
    "--hours", metavar="[LANGUAGE=]H", help="Take about this much of each data set, the same rows "
    "every time; ca=5 is for the rows of a language alone (may be repeated).")]
HoursEach = Annotated[float | None, data(
    "--hours", metavar="H", min=0.001,
    help="Take about this much of each data set; the same rows every time.")]
Streaming = Annotated[bool, data(
    "--streaming", help="Of hub: data fetch only the split's first rows, in its order, until there are --hours of "
    "them. They are not the rows that --hours takes without it, nor a fair sample where a split is sorted.")]
DataSeed = Annotated[int, data(
    "--data-seed", metavar="N",
    help="Seed of the rows that --hours takes, which --seed does not change.")]
Only = Annotated[list[str] | None, data(
    "--only", metavar="KEY=VALUE", help="Take only rows with this value in a column of the data, such as "
    "accent=balear (may be repeated; several values of one column are alternatives).")]
Where = Annotated[list[str] | None, data(
    "--where", metavar="COMPARISON", help="Take only rows for which this is true of a column, "
    "'duration<15' or 'gender!=male' (may be repeated; all have to be true). The columns are those of the data, and "
    "id, language, task, text, text_length, speaker and duration.")]
AllowParts = Annotated[bool, data(
    "--allow-parts", help="Accept data in which most rows are shorter than their files and give no "
    "offset; by default that is an error, as the durations are probably wrong.")]
Format = Annotated[str | None, data(
    "--format", metavar="NAME",
    help="Format of the data, by its name in docs/data.md; detected by default.")]
Normalise = Annotated[str, scoring(
    "--normalise", metavar="NAME", help="Normalisation of texts before errors are counted: auto "
    "(by language: Whisper's for English, marks kept where the script needs them, else Whisper's "
    "basic), leaderboard (the Open ASR Leaderboard's), raw, basic, marks, english or turkish.")]
Beam = Annotated[int, decoding(
    "--beam", metavar="N", min=1,
    help="Hypotheses kept in the search; 1 is greedy. The paper's is 20.")]
BatchSize = Annotated[int | None, decoding(
    "--batch-size", metavar="N", min=1, help="Utterances decoded at a time; by default chosen by "
    "memory, and halved when that runs out.")]
DryRun = Annotated[bool, output(
    "--dry-run", "-n",
    help="Check everything and show what would be done; write and upload nothing.")]
AllowOtherBase = Annotated[bool, output(
    "--allow-other-base", help="Apply deltas to another checkpoint than they were taken from.")]
MaxTokens = Annotated[int | None, decoding(
    "--max-tokens", metavar="N", min=1, help="Most tokens of a hypothesis, not counting the "
    "prompt; by default the model's limit.")]
MemorySize = Annotated[str | None, machine(
    "--memory", metavar="SIZE", help="Most memory of each process, such as 16GB; by default what "
    "the machine, its cgroups and SLURM leave, divided among the processes on it.")]
Seed = Annotated[int, machine("--seed", metavar="N", help="Random seed.")]
Verbose = Annotated[bool, output(
    "--verbose", "-v", help="List every row that is dropped, and details.")]
ComputeDtype = Annotated[str, machine(
    "--dtype", metavar="DTYPE",
    help="float32, float16 or bfloat16 to compute in; auto is float16 on a GPU with CUDA and "
    "float32 elsewhere. What it came to is recorded.")]
EngineName = Annotated[str, machine(
    "--engine", metavar="NAME",
    help="torch or ct2 (CTranslate2, an extra): faster on a CPU, with a few other texts "
    "(docs/scores.md). With ct2, --dtype may be int8.")]
Quiet = Annotated[bool, output("--quiet", "-q", help="Only warnings and errors.")]
Json = Annotated[bool, output("--json", help="Print the result as one JSON document.")]
Debug = Annotated[bool, output("--debug", help="Show the traceback of an error.")]
# fmt: on


def others_given(context: typer.Context, used: Collection[str]) -> list[str]:
    """Return the options that the command line gives for parameters other than those in use."""
    return [
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.name not in used
        and getattr(context.get_parameter_source(parameter.name or ""), "name", "") == "COMMANDLINE"
    ]


def parse_numbers(option: str, text: str) -> tuple[float, ...]:
    """Return the numbers of a list with commas.

    Raises:
        UsageFault: an element is no number.

    Example:
        >>> parse_numbers("--temperatures", "0,0.5, 1")
        (0.0, 0.5, 1.0)
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageFault(
            f"{option} {text} is no list of numbers.", f"Write {option} 0,0.5."
        ) from None


def parse_size(option: str, text: str) -> int:
    """Return the bytes of `5GB` (10 ** 9 each) or `5GiB` (2 ** 30 each).

    Raises:
        UsageFault: not a number with KB, MB, GB or TB, or KiB, MiB, GiB or TiB.

    Example:
        >>> parse_size("--memory", "1.5GB"), parse_size("--memory", "1GiB")
        (1500000000, 1073741824)
    """
    match = re.fullmatch(r"([\d.]+)([KMGT])(i?)B", text, re.IGNORECASE)
    try:
        step = 1024 if match and match[3] else 1000
        size = int(float(match[1]) * step ** UNITS[match[2].upper()]) if match else 0
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise UsageFault(f"{option} {text} is not a size.", "Write 5GB or 500MB.")
    return size
