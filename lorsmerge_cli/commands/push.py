"""`lorsmerge push`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorsmerge_cli import console, options
from lorsmerge_cli.errors import HubFault, raise_all

if TYPE_CHECKING:
    from lorsmerge_cli.operations.push import PushPlan

HUB = "Hub"
CARD = "Model card"


def push(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A model folder, a .safetensors file or a .delta."),
    ],
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="ORG/NAME; made if it is not there.")
    ],
    private: Annotated[
        bool,
        typer.Option("--private", rich_help_panel=HUB, help="Make a new repository private."),
    ] = False,
    create_pr: Annotated[
        bool,
        typer.Option("--create-pr", rich_help_panel=HUB,
                     help="Open a pull request instead of committing."),
    ] = False,
    message: Annotated[
        str | None,
        typer.Option("--commit-message", metavar="TEXT", rich_help_panel=HUB,
                     help="What the commit, or the pull request, is called."),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="BRANCH", rich_help_panel=HUB,
                     help="An existing branch to commit to; main by default."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option("--token", metavar="TOKEN", rich_help_panel=HUB, show_default=False,
                     help="By default that of `hf auth login`, or HF_TOKEN."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", metavar="JSON", rich_help_panel=CARD,
                     help="Show these scores, which `eval -o` wrote of this model."),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option("--base-model", metavar="ORG/NAME", rich_help_panel=CARD,
                     help="The base's Hub id, where it was merged from a local copy."),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", rich_help_panel=CARD,
                     help="Such as apache-2.0; the base's by default, where its card is found."),
    ] = None,
    replace_card: Annotated[
        bool,
        typer.Option("--replace-card", rich_help_panel=CARD,
                     help="Replace the repository's README.md, which is kept otherwise."),
    ] = False,
    companions: options.Processor = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", "-n", rich_help_panel=options.OUTPUT,
                     help="Check everything and show the files and the card; upload nothing."),
    ] = False,
) -> None:  # fmt: skip
    """Upload a model, a checkpoint or a delta to the Hugging Face Hub, with a model card.

    Only what changed is sent, also after an upload that broke off. The card says how a merge was
    made, and holds its recipe: `lorsmerge merge --recipe card.md` makes it again.

    Example: lorsmerge push merged/ you/whisper-small-babel --private --results results.json
    """
    console.hide(token)
    from lorsmerge_cli.usage import check_push

    raise_all(check_push(source, results))
    from lorsmerge_cli.hub.target import check_id, new_target, open_target

    check_id(repo)
    from lorsmerge_cli.operations.push import plan_push, run_push

    where: Any = {
        "revision": revision, "create_pr": create_pr, "private": private, "token": token,
    }  # fmt: skip
    try:
        target = open_target(repo, **where)
    except HubFault as fault:
        if not dry_run:
            raise
        console.warning(f"What {repo} holds is not known. {fault}")
        target = new_target(repo, **where)
    plan = plan_push(
        source, target, results=results, base_model=base_model, license=license,
        replace_card=replace_card, companions=companions,
    )  # fmt: skip
    for text in plan.notes:
        console.note(text)
    if dry_run:
        console.result(_plan_document(plan), lambda: _show_plan(plan))
        return
    report = run_push(plan, message)
    console.result(asdict(report), lambda: console.lines(report.in_words(target)))


def _plan_document(plan: PushPlan) -> dict[str, Any]:
    return {
        "url": plan.target.url,
        "new": not plan.target.exists,
        "files": sorted({*plan.files, *(["README.md"] if plan.card is not None else [])}),
        "bytes": plan.source.size,
        "removed": plan.stale,
        "card": plan.card,
    }


def _show_plan(plan: PushPlan) -> None:
    rows = [[path, console.size(file.stat().st_size)] for path, file in plan.files.items()]
    console.table(["file", "size"], rows)
    for path in plan.stale:
        console.line(f"{path} would be removed from {plan.target.repo}")
    where = "" if plan.target.exists else "a new repository, "
    console.line(f"would upload what of it is not yet in {where}{plan.target.url}")
    if plan.card is not None:
        console.line("\nREADME.md:\n")
        console.block(plan.card)
