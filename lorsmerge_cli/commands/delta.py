"""`lorsmerge delta`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lorsmerge_cli import console, options
from lorsmerge_cli.errors import raise_all


def delta(
    base: Annotated[Path, typer.Argument(
        help="The pretrained checkpoint: file, folder or Hub id.")],
    finetuned: Annotated[Path, typer.Argument(
        help="A fine-tune of it, or a LoRA adapter: file, folder or Hub id.")],
    output: options.Output,
    task: Annotated[str, typer.Option(
        "--task", metavar="TASK", help="Task of the fine-tune: asr or st.")] = "",
    language: Annotated[str, typer.Option(
        "--language", metavar="CODE", help="Language of the fine-tune, such as ca.")] = "",
    strip_prefix: options.StripPrefix = "",
    force: options.Force = False,
    threads: options.Threads = None,
) -> None:  # fmt: skip
    """Write a fine-tune's delta: its weights minus the base's.

    It is always float32, because updates are small.

    Example: lorsmerge delta openai-whisper-small/ my-finetune-ca/ -o ca_asr.delta --task asr --language ca
    """
    from lorsmerge_cli import usage

    inputs = [base, finetuned]
    raise_all(
        usage.check_labels(task, language)
        + usage.check_together(inputs)
        + usage.check_outputs([output], inputs=inputs, force=force)
    )
    from lorsmerge_cli.operations.delta import delta as operation
    from lorsmerge_cli.recipe.published import recorded_command

    with console.progress("delta") as progress:
        report = operation(
            base, finetuned, output, task=task, language=language,
            command=recorded_command(sys.argv[1:]), force=force, threads=threads, progress=progress,
            strip_prefix=strip_prefix,
        )  # fmt: skip
    console.warning(*report.warnings)
    share = report.norm / report.base_norm if report.base_norm else 0.0
    console.result(
        {
            "output": str(report.output),
            "tensors": report.tensors,
            "norm": report.norm,
            "relative_norm": share,
            "bytes": report.nbytes,
        },
        lambda: console.line(
            f"{report.output}: {report.tensors} tensors, {console.size(report.nbytes)}, "
            f"norm {report.norm:.4g} ({share:.2%} of the base's)"
        ),
    )
