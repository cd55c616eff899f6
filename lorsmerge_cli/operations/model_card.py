"""The model card: what was merged and how, scores, and code to use it, as the Hub reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from lorsmerge_cli import __version__
from lorsmerge_cli.checkpoint.hub_faults import hub_faults
from lorsmerge_cli.checkpoint.references import pinned_parts
from lorsmerge_cli.errors import HubFault
from lorsmerge_cli.operations.model_card_scores import model_index, score_table
from lorsmerge_cli.operations.model_card_usage import SPEECH, usage_of
from lorsmerge_cli.operations.push_source import CARD, Source
from lorsmerge_cli.operations.recipe import RATIOS, DeltaEntry, Recipe

METHODS_IN_WORDS = {
    "lors": "LoRS-Merging (low-rank and sparse model merging)",
    "svp": "merging with singular value pruning",
    "mp": "merging with magnitude pruning",
    "ta": "task arithmetic",
    "wa": "weight averaging",
}


@dataclass(frozen=True)
class Subject:
    """What a card is written about.

    Attributes:
        source: what is pushed.
        repo: where to.
        base: the base's Hub id, None where it is not known.
        license: an id such as `apache-2.0`, None where it is not known.
        records: scores, of `read_results`.
    """

    source: Source
    repo: str
    base: str | None
    license: Mapping[str, str]
    records: list[dict[str, Any]]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Languages and tasks that were trained for, in order."""
        if self.source.delta is not None:
            found = [(self.source.delta.language, self.source.delta.task)]
        else:
            made = self.source.merge.get("deltas") or [self.source.run]
            rows = [row for about in made for row in (about, *_trained_on(about))]
            found = [(row.get("language") or "", row.get("task") or "") for row in rows]
        return list(dict.fromkeys(pair for pair in found if any(pair)))


def _trained_on(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = about.get("trained_on") or about.get("training", {}).get("trained_on") or []
    return [row for row in rows if isinstance(row, dict)]


def hub_id(text: str) -> str | None:
    """`org/name` of a Hub id as provenance records it, with its commit; None for a path."""
    parts = pinned_parts(text)
    return parts[0] if parts else None


def base_of(source: Source) -> str:
    """What the base was called when the source was made; empty where nothing is known."""
    if source.delta is not None:
        return source.delta.base_name
    recipe = source.merge.get("recipe", {})
    return str(recipe.get("base", "") or source.run.get("base_name", "") or "")


def license_of(base: str, base_id: str | None, token: str | None) -> dict[str, str]:
    """`license` and what goes with it from the base's own card, wherever that can be read."""
    local = Path(base) / CARD if base else None
    try:
        if local is not None and local.is_file():
            data = ModelCard.load(local).data.to_dict()
        elif base_id is not None:
            with hub_faults(base_id, token=token):
                data = ModelCard.load(base_id, token=token).data.to_dict()
        else:
            return {}
    except (HubFault, ValueError, OSError):  # a card that is not there, or no card at all
        return {}
    keys = ("license", "license_name", "license_link")
    return {key: str(data[key]) for key in keys if data.get(key)}


def write_card(subject: Subject) -> str:
    """The card's text: a YAML block, then Markdown."""
    source = subject.source
    name = subject.repo.rpartition("/")[2]
    languages = sorted({language for language, _ in subject.pairs if language})
    merged_ids = [hub_id(entry["path"]) for entry in _recipe(source).get("deltas", [])]
    bases = [item for item in dict.fromkeys([subject.base, *merged_ids]) if item]
    tags = ["merge"] if source.merge else []
    fields: dict[str, Any] = dict(subject.license) | {
        "language": languages or None,
        "library_name": "lorsmerge" if source.kind == "delta" else "transformers",
        "pipeline_tag": SPEECH if source.is_whisper else None,
        "tags": [*tags, "lorsmerge", *(["whisper"] if source.is_whisper else [])],
    }
    if bases:
        relation = "adapter" if source.kind == "delta" else "merge" if source.merge else "finetune"
        fields |= {"base_model": bases, "base_model_relation": relation}
    if subject.records:
        fields |= {"model_name": name, "eval_results": model_index(subject.records)}
    data = ModelCardData(**fields)
    parts = [f"---\n{data.to_yaml()}\n---", f"# {name}", *_body(subject)]
    return str(ModelCard("\n\n".join(parts) + "\n"))


def _body(subject: Subject) -> Iterator[str]:
    source = subject.source
    if source.delta is not None:
        yield from _delta_body(subject)
    elif source.merge:
        yield _merge_line(subject)
    elif subject.base:
        yield f"A fine-tune of [{subject.base}](https://huggingface.co/{subject.base})."
    usage = usage_of(source, subject.repo, subject.base, subject.pairs)
    if usage:
        yield f"## Use\n\n{usage}"
    if subject.records:
        yield f"## Scores\n\n{score_table(subject.records)}"
    if source.merge:
        yield from _recipe_part(subject)


def _merge_line(subject: Subject) -> str:
    recipe = _recipe(subject.source)
    method = METHODS_IN_WORDS.get(_method(subject.source), "merging")
    base = f"[{subject.base}](https://huggingface.co/{subject.base})" if subject.base else "a base"
    count = len(recipe.get("deltas", []))
    fine_tunes = "one fine-tune" if count == 1 else f"{count} fine-tunes"
    return f"{base} with what {fine_tunes} of it learnt added, without training again: {method}."


def _method(source: Source) -> str:
    """The recipe's; a plain sum of deltas that `prune` had pruned is named after the pruning."""
    method = str(_recipe(source).get("method"))
    made = source.merge.get("deltas", ())
    ratios = {key for about in made for key in RATIOS if key in about.get("pruning", {})}
    pruned = {1: next(iter(ratios), ""), 2: "lors"}.get(len(ratios), method)
    return pruned if method == "ta" else method


def _recipe(source: Source) -> dict[str, Any]:
    found = source.merge.get("recipe", {})
    return found if isinstance(found, dict) else {}


def _recipe_part(subject: Subject) -> Iterator[str]:
    """The inputs as a table, and the recipe that makes the merge again."""
    made = subject.source.merge
    fields = _recipe(subject.source)
    entries = tuple(DeltaEntry(**entry) for entry in fields.get("deltas", ()))
    fields = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
    recipe = Recipe(**fields | {"deltas": entries})
    if subject.base and hub_id(recipe.base) is None:
        recipe = replace(recipe, base=subject.base)
    yield "## How it was made"
    rows = ["| delta | language | task | svp | mp | lambda | fingerprint |",
            "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for entry, about in zip(entries, made.get("deltas", ()), strict=False):
        before = about.get("pruning", {})
        given = (
            entry.svp if entry.svp is not None else before.get("svp"),
            entry.mp if entry.mp is not None else before.get("mp"),
            entry.scale,
        )
        ratios = " | ".join("" if value is None else f"{value:g}" for value in given)
        rows.append(
            f"| {_link(entry.path)} | {about.get('language', '')} | {about.get('task', '')} "
            f"| {ratios} | {str(about.get('fingerprint', ''))[:12]} |"
        )
    yield "\n".join(rows)
    versions = made.get("versions", {})
    yield (
        f"To make it again with lorsmerge {made.get('lorsmerge', __version__)} and PyTorch "
        f"{versions.get('torch', '')}, save this card as `card.md`:"
    )
    yield "```sh\nlorsmerge merge --recipe card.md -o merged/\n```"
    local = [entry.path for entry in entries if hub_id(entry.path) is None]
    if local:
        listed = ", ".join(f"`{path}`" for path in local)
        yield f"Not on the Hub, and to be put where the recipe has them: {listed}."
    yield f"```toml\n{recipe.to_toml().strip()}\n```"


def _link(name: str) -> str:
    """A repository of the Hub as a link, a local file by its name."""
    repo = hub_id(name)
    return f"[{repo}](https://huggingface.co/{repo})" if repo else Path(name).name


def _delta_body(subject: Subject) -> Iterator[str]:
    delta = subject.source.delta
    assert delta is not None
    base = (
        f"[{subject.base}](https://huggingface.co/{subject.base})" if subject.base else "its base"
    )
    what = ", ".join(part for part in (delta.language, delta.task) if part)
    yield (
        f"What a fine-tune{f' ({what})' if what else ''} changed in {base}: a *delta*, to be added to "
        "it, alone or with others."
    )
    if delta.pruning:
        ratios = ", ".join(
            f"{key} {delta.pruning[key]:g}" for key in RATIOS if key in delta.pruning
        )
        kept = delta.pruning.get("energy_kept")
        share = f"; {kept:.1%} of its energy is kept" if isinstance(kept, float) else ""
        yield f"It was pruned ({ratios}){share}."
    if delta.history:
        yield "It was made by:\n\n```sh\n" + "\n".join(delta.history) + "\n```"
