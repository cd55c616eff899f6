"""Push: plan and upload; only files that changed are sent."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

from lorsmerge_cli.checkpoint.whisper_config import lacking_processor
from lorsmerge_cli.errors import Interrupted, LorsmergeError, UnreadableFile, UsageFault, raise_all
from lorsmerge_cli.hub.faults import hub_faults
from lorsmerge_cli.hub.target import Target, check_id, listed
from lorsmerge_cli.operations.push.card import base_of, hub_id, license_of, write_card
from lorsmerge_cli.operations.push.card_scores import Scored, scores_of
from lorsmerge_cli.operations.push.source import CARD, Source, find_source

STALE = ("model*.safetensors", "model.safetensors.index.json")  # could be read instead of the new
XET_HOST = "https://huggingface.co"


@dataclass(frozen=True)
class PushPlan:
    """A checked push.

    Attributes:
        source: what is pushed.
        target: the repository.
        card: text of the README.md to write; None if one is kept or pushed as it is.
        files: path in the repository -> file.
        stale: weight files in the repository that the model no longer has.
        notes: what the user should know.
    """

    source: Source
    target: Target
    card: str | None
    files: Mapping[str, Path]
    stale: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PushReport:
    """What a push did.

    Attributes:
        url: of the repository, or of the pull request.
        commit: id of the commit; the newest one if nothing had changed.
        uploaded: paths in the repository that were uploaded.
        unchanged: paths of files that the repository had already.
        removed: paths of stale weight files that were deleted.
    """

    url: str
    commit: str
    uploaded: tuple[str, ...]
    unchanged: tuple[str, ...]
    removed: tuple[str, ...]

    def in_words(self, target: Target) -> list[str]:
        """Return lines for the terminal that say what was uploaded and removed."""
        count = len(self.uploaded) + len(self.unchanged)
        if not self.uploaded and not self.removed:
            return [f"{self.url}: all {count} files are up to date, nothing was uploaded"]
        removed = f", {len(self.removed)} old weight files removed" if self.removed else ""
        private = "private " if target.private else ""
        new = "" if target.exists else f", in a new {private}repository"
        return [
            f"{self.url}: {len(self.uploaded)} of {count} files uploaded{removed}; "
            f"commit {self.commit[:10]}{new}",
            f"uploaded: {', '.join(self.uploaded)}",
        ]


def plan_push(
    source: Path,
    target: Target,
    *,
    results: Sequence[Path] = (),
    base_model: str | None = None,
    license: str | None = None,
    replace_card: bool = False,
    config_dir: Path | None = None,
) -> PushPlan:
    """Check a source and render its card.

    The parameters are those of `push`; `target` comes from `open_target`.

    Raises:
        LorsmergeError: all faults, found together.
    """
    found = find_source(source, config_dir)
    faults: list[LorsmergeError] = []
    if found.kind == "model" and found.is_whisper:
        faults += lacking_processor(found.files, config_dir or source, source)
    keeps = CARD in target.files and not replace_card
    own = CARD in found.files
    if results and found.kind == "delta":
        faults.append(
            UsageFault(
                "--results is for models, and this is a delta.", "Push a merge of it instead."
            )
        )
    elif results and (keeps or own):
        kept = f"{target.repo} has" if keeps else f"{source} has"
        remedy = "Give --replace-card." if keeps else "Move it away to have one written."
        faults.append(UsageFault(f"{kept} a {CARD}, so --results would not be shown.", remedy))
    scores: list[Scored] = []
    try:
        if results and not faults:
            scores = scores_of(results, found.identity, source)
        if base_model is not None:
            check_id(base_model, "--base-model ")
    except LorsmergeError as error:
        faults.append(error)
    raise_all(faults)
    files = {path: file for path, file in found.files.items() if path != CARD or not keeps}
    card, notes = None, [f"{target.repo} has a {CARD}, which is kept; --replace-card replaces it."]
    if not keeps and own:
        notes = [f"The card is {source / CARD}."]
    elif not keeps:
        card, notes = _card(found, target, base_model, license, scores)
    stale = tuple(
        path
        for path in target.files
        if found.kind == "model"
        and path not in files
        and any(fnmatchcase(path, pattern) for pattern in STALE)
    )
    return PushPlan(found, target, card, files, stale, (*notes, *found.notes))


def _card(
    source: Source,
    target: Target,
    base_model: str | None,
    license: str | None,
    scores: list[Scored],
) -> tuple[str, list[str]]:
    base = base_of(source)
    base_id = base_model or hub_id(base)
    terms = {"license": license} if license else license_of(base, base_id, target.token)
    notes = []
    if base_id is None:
        called = f"{base!r}, which is no Hub id" if base else "not recorded"
        notes.append(f"The card names no base model: it is {called}. Give --base-model ORG/NAME.")
    if not terms:
        notes.append("The card names no license: the base's is not known. Give --license ID.")
    try:
        return write_card(source, target.repo, base_id, terms, scores), notes
    except (TypeError, ValueError) as error:  # huggingface_hub refuses it
        raise UnreadableFile(
            f"{source.path}: no card can be written of it ({error}).",
            f"Write a {CARD} of your own into it.",
        ) from error


def run_push(plan: PushPlan, message: str | None = None) -> PushReport:
    """Carry out a plan.

    Files that the repository has already are not sent again, nor those that an interrupted push
    has uploaded.

    Args:
        plan: from `plan_push`.
        message: commit message; names the source by default.

    Raises:
        HubFault: the Hub refused, or the connection broke.
        Interrupted: a signal arrived.
    """
    target = plan.target
    api = HfApi(token=target.token)
    logging.getLogger("huggingface_hub.hf_api").setLevel(logging.ERROR)  # "nothing to commit"
    if constants.ENDPOINT != XET_HOST:  # other servers lack Xet, and hf_xet does not fall back
        constants.HF_HUB_DISABLE_XET = True
    additions = [
        CommitOperationAdd(path, plan.source.published.get(path, str(file)))
        for path, file in plan.files.items()
    ]
    if plan.card is not None:
        additions = [item for item in additions if item.path_in_repo != CARD]
        additions.append(CommitOperationAdd(CARD, plan.card.encode()))
    try:
        with hub_faults(target.repo, target.revision, target.token):
            if not target.exists:
                api.create_repo(target.repo, private=target.private or None, exist_ok=True)
            commit = api.create_commit(
                target.repo,
                [*additions, *(CommitOperationDelete(path) for path in plan.stale)],
                commit_message=message or f"Upload {plan.source.path.name} with lorsmerge",
                revision=target.revision,
                create_pr=target.create_pr,
            )
            now = listed(api, target.repo, commit.pr_revision or commit.oid)
    except KeyboardInterrupt:
        raise Interrupted(
            f"The upload to {target.repo} was interrupted.",
            "Push again to resume: uploaded files are not sent again.",
        ) from None
    paths = [item.path_in_repo for item in additions]
    uploaded = tuple(path for path in paths if now.get(path) != target.files.get(path))
    return PushReport(
        url=commit.pr_url or target.url,
        commit=commit.oid,
        uploaded=uploaded,
        unchanged=tuple(path for path in paths if path not in uploaded),
        removed=plan.stale,
    )
