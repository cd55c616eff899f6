"""Option types that several commands share, so that they read the same everywhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from lorsmerge_cli.core.methods import METHODS, PAPER_SCALE
from lorsmerge_cli.errors import UsageFault

METHOD_NAMES = "; ".join(f"{name}: {method.title}" for name, method in METHODS.items())
WITHOUT_RATIOS = "; ".join(
    f"{name}: {method.title}" for name, method in METHODS.items() if not method.ratios
)
SCALES = f"{PAPER_SCALE} by default" + "".join(
    f", {method.scale:g} for {name}"
    for name, method in METHODS.items()
    if method.scale != PAPER_SCALE
)
PRUNING = "Pruning"
OUTPUT = "Output"
MACHINE = "Machine"
DATA = "Data"
DECODING = "Decoding"
SCORING = "Scoring"
UNITS = {"K": 1, "M": 2, "G": 3, "T": 4}

Svp = Annotated[
    float | None,
    typer.Option(
        "--svp",
        metavar="R",
        help="Singular value pruning: share of the singular triplets that is kept (paper: 0.01 to 0.05).",
        rich_help_panel=PRUNING,
    ),
]
Mp = Annotated[
    float | None,
    typer.Option(
        "--mp",
        metavar="P",
        help="Magnitude pruning: share of the entries that is kept (paper: 0.1 to 0.6).",
        rich_help_panel=PRUNING,
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        metavar="PATTERN",
        help="Prune these 2-D tensors as well (shell pattern; may be repeated).",
        rich_help_panel=PRUNING,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="PATTERN",
        help="Merge these tensors unpruned (shell pattern; may be repeated).",
        rich_help_panel=PRUNING,
    ),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="PATH", help="File to write.",
                       rich_help_panel=OUTPUT),
]  # fmt: skip
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        "-f",
        help="Replace outputs that exist; a folder only where all that it holds is as lorsmerge wrote it.",
        rich_help_panel=OUTPUT,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="float32, float16 or bfloat16 for what is written; as the input is by default.",
        rich_help_panel=OUTPUT,
    ),
]
Companions = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FOLDER",
        help="Model folder or Hub id to take config and tokenizer from, for a bare file of weights.",
    ),
]
Processor = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FOLDER",
        help="Model folder or Hub id to take tokenizer and feature extractor from, for a folder that "
        "has none; a Trainer's checkpoint-N takes those of the folder it lies in.",
    ),
]
StripPrefix = Annotated[
    str,
    typer.Option(
        "--strip-prefix",
        metavar="PREFIX",
        help="What stands before the names of the fine-tune's tensors, or of the base's, and not "
        "before the other's: module. of DataParallel, _orig_mod. of torch.compile, model. of a whole model.",
        rich_help_panel=MACHINE,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Where the work is done: auto, cpu, cuda, cuda:N or mps.",
        rich_help_panel=MACHINE,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        help="Tensors in flight; one per core by default. The result does not depend on it.",
        rich_help_panel=MACHINE,
    ),
]
Split = Annotated[
    str | None,
    typer.Option("--split", metavar="NAME", rich_help_panel=DATA,
                 help="train, dev, test or another that the data has."),
]  # fmt: skip
Language = Annotated[
    str | None,
    typer.Option("--language", metavar="CODE", rich_help_panel=DATA,
                 help="Spoken language (ca, Catalan), for data that does not say; rows that say "
                 "another are skipped."),
]  # fmt: skip
Task = Annotated[
    str | None,
    typer.Option("--task", metavar="TASK", rich_help_panel=DATA,
                 help="asr or st (translation into English), for data that does not say; rows that "
                 "say the other are skipped."),
]  # fmt: skip
Hours = Annotated[
    float | None,
    typer.Option("--hours", metavar="H", min=0.001, rich_help_panel=DATA,
                 help="Take about this much of each data set; the same rows every time."),
]  # fmt: skip
DataSeed = Annotated[
    int,
    typer.Option("--data-seed", metavar="N", rich_help_panel=DATA,
                 help="Another N takes other rows for --hours; --seed does not."),
]  # fmt: skip
AllowParts = Annotated[
    bool,
    typer.Option("--allow-parts", rich_help_panel=DATA,
                 help="Use rows that are shorter than their files and give no offset where most are "
                 "so; without it that is an error, as the durations are probably wrong."),
]  # fmt: skip
Format = Annotated[
    str | None,
    typer.Option("--format", metavar="NAME", rich_help_panel=DATA,
                 help="jsonl, common-voice, covost, hf or kaldi; found out by default."),
]  # fmt: skip
Normalise = Annotated[
    str,
    typer.Option("--normalise", metavar="NAME", rich_help_panel=SCORING,
                 help="What error rates are of: auto (by language: Whisper's for English, marks kept "
                 "where the script needs them, Whisper's basic else), raw, basic, marks, english or "
                 "turkish."),
]  # fmt: skip
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", metavar="N", min=1, rich_help_panel=DECODING,
                 help="Most tokens of a hypothesis, the prompt not counted; the model's limit by "
                 "default."),
]  # fmt: skip
MemorySize = Annotated[
    str | None,
    typer.Option("--memory", metavar="SIZE", rich_help_panel=MACHINE,
                 help="Memory that each process may take in all, such as 16GB; by default what the "
                 "machine, its cgroups and SLURM leave, divided among the processes here."),
]  # fmt: skip
Seed = Annotated[
    int,
    typer.Option("--seed", metavar="N", help="Of everything random.", rich_help_panel=MACHINE),
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="List every row that is dropped, and details.",
                 rich_help_panel=OUTPUT),
]  # fmt: skip
ComputeDtype = Annotated[
    str,
    typer.Option("--dtype", metavar="DTYPE", rich_help_panel=MACHINE,
                 help="float32, float16 or bfloat16 to compute in; recorded with the result."),
]  # fmt: skip
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Only warnings and errors.", rich_help_panel=OUTPUT),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print the result as one JSON document.", rich_help_panel=OUTPUT),
]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=OUTPUT),
]


def parse_size(option: str, text: str) -> int:
    """Return the bytes of `5GB` (10 ** 9 each) or `5GiB` (2 ** 30 each).

    Raises:
        UsageFault: not a number with KB, MB, GB or TB, or KiB, MiB, GiB or TiB.
    """
    match = re.fullmatch(r"([\d.]+)([KMGT])(i?)B", text, re.IGNORECASE)
    try:
        step = 1024 if match and match[3] else 1000
        size = int(float(match[1]) * step ** UNITS[match[2].upper()]) if match else 0
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise UsageFault(f"{option} {text} is no size.", "Write 5GB or 500MB.")
    return size
