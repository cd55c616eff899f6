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

_hub = options.panel("Hub")
_card = options.panel("Model card")


def push(
    source: Annotated[Path, typer.Argument(
        metavar="SOURCE", help="A model folder, a .safetensors file or a .delta.")],
    repo: Annotated[str, typer.Argument(
        metavar="REPO", help="ORG/NAME; created if it does not exist.")],
    private: Annotated[bool, _hub("--private", help="Make a new repository private.")] = False,
    create_pr: Annotated[bool, _hub(
        "--create-pr", help="Open a pull request instead of committing.")] = False,
    message: Annotated[str | None, _hub(
        "--commit-message", metavar="TEXT", help="Title of the commit or pull request.")] = None,
    revision: Annotated[str | None, _hub(
        "--revision", metavar="BRANCH",
        help="An existing branch to commit to; main by default.")] = None,
    token: Annotated[str | None, _hub(
        "--token", metavar="TOKEN", show_default=False, help="Access token; by default that of `hf "
        "auth login`, or HF_TOKEN.")] = None,
    results: Annotated[list[Path] | None, _card(
        "--results", metavar="JSON",
        help="Results of `eval -o` for this model, shown on the card; repeatable.")] = None,
    base_model: Annotated[str | None, _card(
        "--base-model", metavar="ORG/NAME",
        help="Hub id of the base, for a merge of a local copy.")] = None,
    license: Annotated[str | None, _card(
        "--license", metavar="ID",
        help="Licence, such as apache-2.0; by default the one on the base's card.")] = None,
    replace_card: Annotated[bool, _card(
        "--replace-card",
        help="Replace the repository's README.md, which is otherwise kept.")] = False,
    config_dir: options.Processor = None,
    dry_run: options.DryRun = False,
) -> None:  # fmt: skip
    """Upload a model, a checkpoint or a delta to the Hugging Face Hub, with a model card.

    Only changed files are sent, and an interrupted upload resumes. The card describes how a merge
    was made and holds its recipe: `lorsmerge merge --recipe card.md` repeats it.

    Example: lorsmerge push merged/ you/whisper-small-babel --private --results results.json
    """
    console.hide(token)
    from lorsmerge_cli.usage import check_push

    raise_all(check_push(source, results or []))
    from lorsmerge_cli.hub.target import new_target, open_target

    where: Any = {
        "revision": revision, "create_pr": create_pr, "private": private, "token": token,
    }  # fmt: skip
    try:
        target = open_target(repo, **where)
    except HubFault as fault:
        if not dry_run:
            raise
        console.warning(f"The files of {repo} are unknown. {fault}")
        target = new_target(repo, **where)
    from lorsmerge_cli.operations.push import plan_push, run_push

    plan = plan_push(
        source, target, results=results or [], base_model=base_model, license=license,
        replace_card=replace_card, config_dir=config_dir,
    )  # fmt: skip
    console.note(*plan.notes)
    if dry_run:
        console.result(_plan_document(plan), lambda: _show_plan(plan))
        return
    report = run_push(plan, message)
    console.result(asdict(report), lambda: console.line(*report.in_words(target)))


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
    console.line(f"would upload the files that are not yet in {where}{plan.target.url}")
    if plan.card is not None:
        console.line("\nREADME.md:\n")
        console.block(plan.card)
