"""Report on data sets, and write them as one JSON-lines manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from lorsmerge_cli.data.conditions import Condition
from lorsmerge_cli.data.dataset import load_data
from lorsmerge_cli.data.digests import DataDigests, digests_of
from lorsmerge_cli.data.hours import Given, parse_hours
from lorsmerge_cli.data.leakage import repeated, shared_with
from lorsmerge_cli.data.manifest import audio_faults, write_manifest
from lorsmerge_cli.data.readers import manifest_splits
from lorsmerge_cli.data.report import DataReport
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import raise_all
from lorsmerge_cli.operations.data.plot import plot_data
from lorsmerge_cli.outputs import check_output
from lorsmerge_cli.pictures import check_picture


def data(
    paths: Sequence[Path],
    *,
    output: Path | None = None,
    split: Sequence[str] | None = None,
    language: str | None = None,
    task: str | None = None,
    format: str | None = None,
    conditions: Sequence[Condition] = (),
    hours: Given = None,
    seed: int = 0,
    max_seconds: float = 30.0,
    force: bool = False,
    allow_parts: bool = False,
    checked: bool = False,
    plot: Path | None = None,
    tokenizer: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DataReport:
    """Return what data sets hold and, with `output`, write them as JSON lines with NeMo's keys.

    Nothing is written if no row can be used. Recordings that are no files of their own are written
    into a folder beside the manifest, `ca.jsonl.audio/` for `ca.jsonl`, as they are encoded.

    Args:
        paths: manifests, folders, or references to the Hub (`hub:org/name:config:split`).
        output: the manifest to write; none by default.
        split: names of the splits to read of each data set that has several.
        language: as in `load_data`.
        task: as in `load_data`.
        format: as in `load_data`.
        conditions: as in `load_data`.
        hours: as in `load_data`.
        seed: as in `load_data`.
        max_seconds: as in `load_data`.
        force: replace outputs that exist.
        allow_parts: as in `load_data`.
        checked: as in `load_data`.
        plot: a picture of durations, hours and texts to draw; needs matplotlib.
        tokenizer: model folder or Hub id, whose tokenizer's spelling is drawn as well.
        progress: as in `load_data`.

    Raises:
        LorsmergeError: see the subclasses; nothing is written then.
    """
    if output is not None:
        raise_all(check_output(output, inputs=paths, size=0, force=force))
    if plot is not None:
        raise_all(check_picture(plot, paths, force=force))
    sets: list[tuple[str, DataReport]] = []
    asked = parse_hours(hours)
    for path in paths:
        wanted: list[str | None] = [*split] if split else [None]
        several = len(wanted) > 1 and bool(manifest_splits(path, format))
        for name in wanted if several else wanted[:1]:
            found = load_data(
                [path], split=name, language=language, task=task, format=format, hours=asked,
                seed=seed, max_seconds=max_seconds, allow_parts=allow_parts, checked=checked,
                progress=progress, conditions=conditions,
                other_languages=len(paths) > 1,
            )  # fmt: skip
            sets.append((f"{path} ({name})" if several else str(path), found))
    if asked and len(paths) > 1:
        there = (row.language for _, found in sets for row in found.utterances)
        asked.check_languages(there, ", ".join(map(str, paths)))
    warnings = _shared_warnings([(name, found.utterances) for name, found in sets])
    report = replace(DataReport.joined([found for _, found in sets]), warnings=tuple(warnings))
    if plot is not None and report.utterances:
        plot_data(report, plot, force=force, spelled=_spelled(report, tokenizer))
    if output is None or not report.utterances:
        return report
    raise_all(audio_faults(report.utterances, output, inputs=paths, force=force))
    folder = write_manifest(output, report.utterances, force=force)
    return replace(report, output=output, audio=folder)


def _spelled(report: DataReport, tokenizer: Path | None) -> dict[str, float] | None:
    """Return language -> share of characters that a tokenizer spells out; None without one."""
    if tokenizer is None:
        return None
    from lorsmerge_cli.speech.source import find_model
    from lorsmerge_cli.speech.spelling import share_spelled_out

    found = find_model(tokenizer).parts.processor.tokenizer
    texts: dict[str, list[str]] = {}
    for row in report.utterances:
        texts.setdefault(row.language, []).append(row.text)
    return {language: share_spelled_out(found, said) for language, said in texts.items()}


def _shared_warnings(sets: Iterable[tuple[str, Sequence[Utterance]]]) -> list[str]:
    """Return warnings of what each set repeats, and shares with those before it."""
    warnings: list[str] = []
    before: list[tuple[str, DataDigests]] = []
    for name, rows in sets:
        digests = digests_of(rows)
        warnings += repeated(digests, name=name)
        for other, theirs in before:
            for shared in shared_with(digests, theirs.sketches):
                warnings.append(f"{shared.in_words(f'{other} too', name=name)}.")
        before.append((name, digests))
    return warnings
