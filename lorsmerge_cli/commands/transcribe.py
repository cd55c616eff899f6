"""`lorsmerge transcribe`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lorsmerge_cli import console, options
from lorsmerge_cli.errors import raise_all


def transcribe(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL", help="Model folders, files of weights, or Hub ids."),
    ],
    audio: Annotated[
        list[Path],
        typer.Option("--audio", "-a", metavar="FILE", rich_help_panel=options.DATA,
                     help="wav, flac, mp3 or ogg (may be repeated)."),
    ],
    language: Annotated[
        str, typer.Option("--language", metavar="CODE", rich_help_panel=options.DATA,
                          help="Spoken language (ca, Catalan)."),
    ],
    task: Annotated[
        str, typer.Option("--task", metavar="TASK", rich_help_panel=options.DATA,
                          help="asr (transcribe) or st (translate into English)."),
    ] = "asr",
    beam: Annotated[
        int, typer.Option("--beam", metavar="N", min=1, help="Hypotheses kept in the search."),
    ] = 5,
    device: options.Device = "auto",
    companions: options.Companions = None,
) -> None:  # fmt: skip
    """Hear what models make of a sound file, side by side.

    Example: lorsmerge transcribe base/ ft/ca_asr merged/ --audio clip.wav --language ca
    """
    from lorsmerge_cli import usage

    raise_all(
        usage.check_inputs(models, [], language=language, task=task, device=device)
        + usage.check_paths([companions])
        + usage.check_audio(audio)
    )
    from lorsmerge_cli.data.audio import ends_early
    from lorsmerge_cli.operations.transcribe import transcribe as operation

    for path in filter(ends_early, audio):
        console.warning(f"{path} was cut short: what it holds is heard, and no more.")
    found = operation(
        models, audio, language=language, task=task, beam=beam, device=device, config_dir=companions
    )
    for item in found:
        if item.heard < item.seconds:
            console.warning(
                f"{item.audio} is {item.seconds:.1f} s long; {item.model} hears the first "
                f"{item.heard:g} s, its window."
            )
        text = f"{item.model}'s text of {item.audio}"
        if item.cut:
            console.warning(f"The limit of tokens ended {text}.")
        if item.looping:
            console.warning(f"{text} repeats itself.")
    rows = [
        [*([str(item.audio)] if len(audio) > 1 else []), item.model, item.text] for item in found
    ]
    heads = [*(["audio"] if len(audio) > 1 else []), "model", "text"]
    console.result(
        {"transcripts": [asdict(item) for item in found]}, lambda: console.table(heads, rows)
    )
