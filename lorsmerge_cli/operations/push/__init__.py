"""Push: upload a model folder, a checkpoint or a delta to the Hub, with a card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lorsmerge_cli.hub.target import open_target
from lorsmerge_cli.inputs import FilePath, path_of, several
from lorsmerge_cli.operations.push.run import PushPlan, PushReport, plan_push, run_push

__all__ = ["PushPlan", "PushReport", "plan_push", "push", "run_push"]


def push(
    source: FilePath,
    repo: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    message: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    results: Sequence[FilePath] | FilePath = (),
    base_model: str | None = None,
    license: str | None = None,
    replace_card: bool = False,
    config_dir: FilePath | None = None,
) -> PushReport:
    """Upload a model, a checkpoint or a delta to the Hugging Face Hub, with a model card.

    Args:
        source: a model folder, a `.safetensors` file or a `.delta`.
        repo: `org/name`; created if it does not exist.
        private: make a new repository private; public by default.
        create_pr: open a pull request instead of committing.
        message: commit message; names the source by default.
        revision: an existing branch to commit to; `main` by default.
        token: HF_TOKEN by default, or the one stored by `hf auth login`.
        results: results of `evaluate` for this model, one file or several, whose scores the card shows.
        base_model: Hub id of the base, if a local copy of it was merged.
        license: such as `apache-2.0`; by default the base's, if its card is found.
        replace_card: replace the repository's README.md; by default it is kept.
        config_dir: model folder or Hub id to take tokenizer and feature extractor from.

    Raises:
        LorsmergeError: see the subclasses. Everything is checked before anything is uploaded.

    Example:
        >>> report = push("ca.delta", "you/whisper-ca", private=True)
        >>> sorted(report.uploaded)
        ['README.md', 'ca.delta']
    """
    target = open_target(repo, revision=revision, create_pr=create_pr, private=private, token=token)
    plan = plan_push(
        Path(source), target, results=list(map(Path, several(results))), base_model=base_model, license=license,
        replace_card=replace_card, config_dir=path_of(config_dir),
    )  # fmt: skip
    return run_push(plan, message)
