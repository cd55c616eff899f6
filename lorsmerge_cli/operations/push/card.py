"""The model card: what was merged and how, scores, and code to use it, as the Hub reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from lorsmerge_cli import __version__
from lorsmerge_cli.checkpoint.references import pinned_parts
from lorsmerge_cli.core.methods import METHODS, method_of, method_of_pruned
from lorsmerge_cli.deltas.file import Provenance
from lorsmerge_cli.hub.faults import hub_faults
from lorsmerge_cli.inputs import read_document
from lorsmerge_cli.operations.push.card_scores import Scored, model_index, score_table
from lorsmerge_cli.operations.push.card_usage import SPEECH, usage_of
from lorsmerge_cli.operations.push.source import CARD, Source
from lorsmerge_cli.quoting import code, fence, markdown, printable
from lorsmerge_cli.recipe.published import published_command, published_recipe
from lorsmerge_cli.recipe.recipe import CARD_BLOCK
from lorsmerge_cli.recipe.record import MergeRecord, ratios_of


@dataclass(frozen=True)
class Subject:
    """What a card is written about.

    Attributes:
        source: what is pushed.
        repo: where to.
        base: the base's Hub id, None where it is not known.
        license: an id such as `apache-2.0`, None where it is not known.
        scores: of `read_results`.
    """

    source: Source
    repo: str
    base: str | None
    license: Mapping[str, str]
    scores: Sequence[Scored]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Languages and tasks that were trained for, in order."""
        source = self.source
        if source.delta is not None:
            found = [(source.delta.language, source.delta.task)]
        elif source.merge is not None:
            found = [pair for delta in source.merge.deltas for pair in delta.pairs]
        else:
            rows = source.run.trained_on if source.run else ()
            found = [(row["language"], row["task"]) for row in rows]
        return list(dict.fromkeys(pair for pair in found if any(pair)))


def hub_id(text: str) -> str | None:
    """`org/name` of a Hub id as provenance records it, with its commit; None for a path."""
    parts = pinned_parts(text)
    return parts[0] if parts else None


def base_of(source: Source) -> str:
    """What the base was called when the source was made; empty where nothing is known."""
    if source.delta is not None:
        return source.delta.base_name
    if source.merge is not None:
        return source.merge.recipe.base
    return source.run.base_name if source.run else ""


def license_of(base: str, base_id: str | None, token: str | None) -> dict[str, str]:
    """`license` and what goes with it from the base's own card, wherever that can be read."""
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
    except (
        Exception
    ):  # no card, or whatever a YAML reader makes of one that anyone may have written
        return {}
    keys = ("license", "license_name", "license_link")
    return {key: printable(data[key]) for key in keys if isinstance(data.get(key), str)}


def write_card(subject: Subject) -> str:
    """The card's text: a YAML block, then Markdown."""
    source = subject.source
    name = subject.repo.rpartition("/")[2]
    languages = sorted({language for language, _ in subject.pairs if language})
    merged_ids = (
        [hub_id(entry.path) for entry in source.merge.recipe.deltas] if source.merge else []
    )
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
    if subject.scores:
        fields |= {"model_name": name, "eval_results": model_index(subject.scores)}
    data = ModelCardData(**fields)
    parts = [f"---\n{data.to_yaml()}\n---", f"# {name}", *_body(subject)]
    return str(ModelCard("\n\n".join(parts) + "\n"))


def _body(subject: Subject) -> Iterator[str]:
    source = subject.source
    if source.delta is not None:
        yield from _delta_body(source.delta, subject.base)
    elif source.merge is not None:
        yield _merge_line(source.merge, subject.base)
    elif subject.base:
        yield f"A fine-tune of {_link(subject.base)}."
    usage = usage_of(source, subject.repo, subject.base, subject.pairs)
    if usage:
        yield f"## Use\n\n{usage}"
    if subject.scores:
        yield f"## Scores\n\n{score_table(subject.scores)}"
    if source.merge is not None:
        yield from _recipe_part(source.merge, subject.base)


def _merge_line(merge: MergeRecord, base_id: str | None) -> str:
    ratios = {key for delta in merge.deltas for key in delta.pruning}
    method = METHODS[method_of_pruned(merge.recipe.method or method_of(()), ratios)].title
    base = _link(base_id) if base_id else "A base"
    count = len(merge.deltas)
    fine_tunes = "one fine-tune" if count == 1 else f"{count} fine-tunes"
    return f"{base} with what {fine_tunes} of it learnt added, without training again: {method}."


def _recipe_part(merge: MergeRecord, base_id: str | None) -> Iterator[str]:
    """The inputs as a table, and the recipe that makes the merge again, without local paths."""
    recipe = published_recipe(merge.recipe)
    if base_id and hub_id(recipe.base) is None:
        recipe = replace(recipe, base=base_id)
    yield "## How it was made"
    rows = ["| delta | language | task | svp | mp | lambda | fingerprint |",
            "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for entry, delta in zip(recipe.deltas, merge.deltas, strict=True):
        given = (
            entry.svp if entry.svp is not None else delta.pruning.get("svp"),
            entry.mp if entry.mp is not None else delta.pruning.get("mp"),
            entry.scale,
        )
        languages, tasks = (
            ", ".join(dict.fromkeys(filter(None, part))) for part in zip(*delta.pairs, strict=True)
        ) if delta.pairs else ("", "")  # fmt: skip
        repo = hub_id(entry.path)
        cells = [
            _link(repo) if repo else markdown(entry.path), languages, tasks,
            *("" if value is None else f"{value:g}" for value in given),
            markdown(delta.fingerprint[:12]),
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    yield "\n".join(rows)
    yield (
        f"To make it again with lorsmerge {markdown(merge.lorsmerge or __version__)} and PyTorch "
        f"{markdown(merge.torch)}, save this card as `card.md`:"
    )
    yield fence("lorsmerge merge --recipe card.md -o merged/", "sh")
    inputs = [recipe.base, *(entry.path for entry in recipe.deltas)]
    local = [path for path in inputs if hub_id(path) is None]
    if local:
        listed = ", ".join(map(code, local))
        yield f"Not on the Hub, and to be put where the recipe has them: {listed}."
    yield fence(recipe.to_toml(), CARD_BLOCK)


def _link(repo: str) -> str:
    """A repository of the Hub as a link."""
    return f"[{markdown(repo)}](https://huggingface.co/{repo})"


def _delta_body(delta: Provenance, base_id: str | None) -> Iterator[str]:
    base = _link(base_id) if base_id else "its base"
    what = ", ".join(part for part in (delta.language, delta.task) if part)
    yield (
        f"What a fine-tune{f' ({what})' if what else ''} changed in {base}: a *delta*, to be added to "
        "it, alone or with others."
    )
    if delta.pruning:
        ratios = ", ".join(f"{key} {value:g}" for key, value in ratios_of(delta.pruning).items())
        kept = delta.pruning.get("energy_kept")
        share = f"; {kept:.1%} of its energy is kept" if isinstance(kept, float) else ""
        yield f"It was pruned ({ratios}){share}."
    history = [command for line in delta.history if (command := published_command(line))]
    if history:
        yield "It was made by:\n\n" + fence("\n".join(map(printable, history)), "sh")
