"""The model card: how the model was made, scores, and code to use it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from lorsmerge_cli.checkpoint.references import pinned_parts
from lorsmerge_cli.core.methods import find_method, method_of, method_of_pruned
from lorsmerge_cli.data.languages import WHISPER_TASKS
from lorsmerge_cli.deltas.file import Provenance
from lorsmerge_cli.hub.faults import hub_faults
from lorsmerge_cli.inputs import read_document
from lorsmerge_cli.operations.push.card_scores import TASKS, Scored, model_index
from lorsmerge_cli.operations.push.source import CARD, Source
from lorsmerge_cli.quoting import code, fence, markdown, printable
from lorsmerge_cli.recipe.published import published_command, published_recipe
from lorsmerge_cli.recipe.recipe import CARD_BLOCK, DeltaEntry
from lorsmerge_cli.recipe.record import MergedDelta, MergeRecord, ratios_of
from lorsmerge_cli.version import __version__

TEMPLATE = Path(__file__).with_name("card.md.j2")


def _trained_pairs(source: Source) -> list[tuple[str, str]]:
    """Return the pairs of language and task in the training data, in order."""
    if source.delta is not None:
        found = [(source.delta.language, source.delta.task)]
    elif source.merge is not None:
        found = [pair for delta in source.merge.deltas for pair in delta.pairs]
    else:
        rows = source.run.trained_on if source.run else ()
        found = [(row["language"], row["task"]) for row in rows]
    return list(dict.fromkeys(pair for pair in found if any(pair)))


def hub_id(text: str) -> str | None:
    """Return `org/name` of a Hub id recorded with its commit; None for a path."""
    parts = pinned_parts(text)
    return parts[0] if parts else None


def base_of(source: Source) -> str:
    """Return the base's path or id as recorded in a source; empty if unknown."""
    if source.delta is not None:
        return source.delta.base_name
    if source.merge is not None:
        return source.merge.recipe.base
    return source.run.base_name if source.run else ""


def license_of(base: str, base_id: str | None, token: str | None) -> dict[str, str]:
    """Return `license` and related fields of the base's card; empty if it cannot be read.

    Args:
        base: the base's path or id as recorded; a folder's own README.md is read first.
        base_id: the base's Hub id, None if unknown.
        token: for the Hub.
    """
    local = Path(base) / CARD if base else None
    try:
        if local is not None and local.is_file():
            card = ModelCard(read_document(local).decode("utf-8"))
        elif base_id is not None:
            with hub_faults(base_id, token=token):
                card = ModelCard.load(base_id, token=token)
        else:
            return {}
        data: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
    except Exception:  # there is no card, or the YAML reader fails on it
        return {}
    keys = ("license", "license_name", "license_link")
    return {key: printable(data[key]) for key in keys if isinstance(data.get(key), str)}


def write_card(
    source: Source,
    repo: str,
    base: str | None,
    license: Mapping[str, str],
    scores: Sequence[Scored] = (),
) -> str:
    """Render the card: a YAML block, then Markdown.

    Args:
        source: what is pushed.
        repo: `org/name` of the repository.
        base: the base's Hub id, None if unknown.
        license: from `license_of`.
        scores: from `read_results`; none by default.
    """
    name = repo.rpartition("/")[2]
    pairs = _trained_pairs(source)
    languages = sorted({language for language, _ in pairs if language})
    merged_ids = (
        [hub_id(entry.path) for entry in source.merge.recipe.deltas] if source.merge else []
    )
    bases = [item for item in dict.fromkeys([base, *merged_ids]) if item]
    tags = ["merge"] if source.merge else []
    fields: dict[str, Any] = dict(license) | {
        "language": languages or None,
        "library_name": "lorsmerge" if source.kind == "delta" else "transformers",
        "pipeline_tag": TASKS["asr"][0] if source.is_whisper else None,
        "tags": [*tags, "lorsmerge", *(["whisper"] if source.is_whisper else [])],
    }
    if bases:
        relation = "adapter" if source.kind == "delta" else "merge" if source.merge else "finetune"
        fields |= {"base_model": bases, "base_model_relation": relation}
    if scores:
        fields |= {"model_name": name, "eval_results": model_index(scores)}
    language, task = next(iter(pairs), ("", ""))  # for the code example
    card = ModelCard.from_template(
        ModelCardData(**fields), str(TEMPLATE), name=name, repo=repo, base=base,
        kind=source.kind, is_whisper=source.is_whisper, file=next(iter(source.files)),
        language=language or "en", task=WHISPER_TASKS.get(task, "transcribe"),
        scores=scores, markdown=markdown, code=code, fence=fence, python=repr,
        shell=shlex.quote, **_delta(source.delta), **_merge(source.merge, base),
    )  # fmt: skip
    return str(card)


def _delta(delta: Provenance | None) -> dict[str, Any]:
    """Return the template's variables for a delta, without local paths."""
    if delta is None:
        return {"delta": None}
    commands = filter(None, map(published_command, delta.history))
    return {
        "delta": delta, "ratios": ratios_of(delta.pruning),
        "history": [printable(command) for command in commands],
    }  # fmt: skip


def _merge(merge: MergeRecord | None, base_id: str | None) -> dict[str, Any]:
    """Return the template's variables for a merge, without local paths."""
    if merge is None:
        return {"merge": None}
    recipe = published_recipe(merge.recipe)
    if base_id and hub_id(recipe.base) is None:
        recipe = replace(recipe, base=base_id)
    ratios = {key for delta in merge.deltas for key in delta.pruning}
    paths = [recipe.base, *(entry.path for entry in recipe.deltas)]
    return {
        "merge": merge, "recipe": recipe, "recipe_block": CARD_BLOCK, "version": __version__,
        "method": find_method(method_of_pruned(merge.recipe.method or method_of(()), ratios)).title,
        "local": [path for path in paths if hub_id(path) is None],
        "inputs": [_input(*pair) for pair in zip(recipe.deltas, merge.deltas, strict=True)],
    }  # fmt: skip


def _input(entry: DeltaEntry, delta: MergedDelta) -> dict[str, Any]:
    """Return a row of the table of a merge's inputs."""
    languages, tasks = (
        ", ".join(dict.fromkeys(filter(None, part)))
        for part in (zip(*delta.pairs, strict=True) if delta.pairs else ("", ""))
    )
    return {
        "path": entry.path, "repo": hub_id(entry.path), "for_task": entry.for_task, "languages": languages, "tasks": tasks,
        "svp": delta.pruning.get("svp") if entry.svp is None else entry.svp,
        "mp": delta.pruning.get("mp") if entry.mp is None else entry.mp,
        "scale": entry.scale, "fingerprint": delta.fingerprint[:12],
    }  # fmt: skip
