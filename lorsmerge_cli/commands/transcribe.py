"""`lorsmerge transcribe`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lorsmerge_cli import console, options
from lorsmerge_cli.errors import raise_all


def transcribe(
    models: Annotated[list[Path], typer.Argument(
        metavar="MODEL", help="Model folders, files of weights, or Hub ids.")],
    audio: Annotated[list[Path], options.data(
        "--audio", "-a", metavar="FILE", help="wav, flac, mp3 or ogg (may be repeated).")],
    language: Annotated[str, options.data(
        "--language", metavar="CODE", help="Spoken language (ca, Catalan).")],
    task: Annotated[str, options.data(
        "--task", metavar="TASK", help="asr (transcribe) or st (translate into English).")] = "asr",
    beam: options.Beam = 5,
    device: options.Device = "auto",
    config_dir: options.ConfigDir = None,
) -> None:  # fmt: skip
    """Transcribe audio files with several models, side by side.

    Example: lorsmerge transcribe base/ ft/ca_asr merged/ --audio clip.wav --language ca
    """
    from lorsmerge_cli import usage

    raise_all(
        usage.check_inputs(models, [], language=language, task=task, device=device)
        + usage.check_paths([config_dir])
        + usage.check_audio(audio)
    )
    from lorsmerge_cli.operations.transcribe import transcribe as operation

    transcripts = operation(
        models, audio, language=language, task=task, beam=beam, device=device, config_dir=config_dir
    )
    console.warning(*dict.fromkeys(text for item in transcripts for text in item.warnings))
    rows = [
        [*([str(item.audio)] if len(audio) > 1 else []), item.model, item.text]
        for item in transcripts
    ]
    heads = [*(["audio"] if len(audio) > 1 else []), "model", "text"]
    console.result(
        {"transcripts": [asdict(item) for item in transcripts]}, lambda: console.table(heads, rows)
    )
