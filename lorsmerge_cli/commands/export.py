"""`lorsmerge export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorsmerge_cli import console, options
from lorsmerge_cli.errors import raise_all


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A Whisper's model folder.")],
    output: Annotated[Path, options.output(
        "--output", "-o", metavar="PATH", help="A folder for ct2, a .pt file for openai.")],
    format: Annotated[str, typer.Option(
        "--format", metavar="NAME",
        help="ct2 (for faster-whisper; needs ctranslate2) or openai (openai-whisper).")],
    dtype: Annotated[str | None, options.output(
        "--dtype", metavar="DTYPE",
        help="float32 or float16, with ct2 also int8 and others; the model's by default.")] = None,
    config_dir: options.Processor = None,
    force: options.Force = False,
) -> None:  # fmt: skip
    """Write a Whisper for faster-whisper (CTranslate2) or openai-whisper.

    Example: lorsmerge export merged/ --format ct2 -o merged-ct2/ --dtype float16
    """
    from lorsmerge_cli import usage

    faults = usage.check_paths([model]) + usage.check_export(format, output, dtype)
    if not faults and not (force and output.is_dir()):
        is_file = format == "openai"
        files, folders = ([output], []) if is_file else ([], [output])
        faults += usage.check_outputs(files, folders, inputs=[model], force=force)
    raise_all(faults)
    from lorsmerge_cli.operations.export import export as operation

    report = operation(
        model, output, format=format, config_dir=config_dir, dtype=dtype, force=force
    )
    console.warning(*report.warnings)
    opened = {
        "ct2": f'faster_whisper.WhisperModel("{report.output}")',
        "openai": f'whisper.load_model("{report.output}")',
    }[report.format]
    console.result(
        {"output": str(report.output), "format": report.format, "bytes": report.nbytes},
        lambda: console.line(
            f"{report.output}: {console.size(report.nbytes)}; opens with {opened}"
        ),
    )
