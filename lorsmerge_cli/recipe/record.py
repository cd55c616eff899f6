"""Read how a model was made: the records of merges and fine-tunes, of any origin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorsmerge_cli.checkpoint.model_writer import RUN
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.checkpoint.safetensors_file import SafetensorsFile
from lorsmerge_cli.core.methods import method_faults, method_of, method_of_pruned
from lorsmerge_cli.core.sketch import Sketch, Trained, digests_entry, recorded_digests, union
from lorsmerge_cli.data.languages import check_labels
from lorsmerge_cli.deltas.file import DeltaFile
from lorsmerge_cli.deltas.task_vector import FinetunedTaskVector, StoredVector, TaskVector
from lorsmerge_cli.errors import LorsmergeError, UnreadableFile, raise_all
from lorsmerge_cli.inputs import json_object, read_document
from lorsmerge_cli.recipe.published import published_name
from lorsmerge_cli.recipe.recipe import LARGEST, RATIOS, Recipe, recipe_of

if TYPE_CHECKING:
    from lorsmerge_cli.data.report import DataReport
    from lorsmerge_cli.data.utterance import Utterance

SHOWN = 16  # characters of a fingerprint
MERGE = "lorsmerge.json"


@dataclass(frozen=True)
class MergedDelta:
    """What a merge recorded of one of its deltas.

    Attributes:
        fingerprint: of its numbers.
        language, task: what its file names, empty where it names none.
        pruning: the ratios that `prune` had applied, by name.
        trained_on: language and task, and hours where they are known, of its training data.
        seed: of its training, None where it is not known.
        digests: of its training data, by kind; empty where there are none.
    """

    fingerprint: str
    language: str
    task: str
    pruning: Mapping[str, float]
    trained_on: tuple[Mapping[str, Any], ...]
    seed: int | None
    digests: Mapping[str, Sketch]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Languages and tasks, of the file and of its training data."""
        rows = [(row["language"], row["task"]) for row in self.trained_on]
        return [pair for pair in dict.fromkeys([(self.language, self.task), *rows]) if any(pair)]


@dataclass(frozen=True)
class MergeRecord:
    """What a merge recorded of itself in `lorsmerge.json`, or in the header of a file.

    Attributes:
        recipe: with every default written out.
        base: the base's fingerprint.
        base_digests: of what the base was trained on, where it is a fine-tune itself.
        deltas: one for each of the recipe's.
        lorsmerge, torch: versions, empty where they are not recorded.
        step_norm: L2 norm of the step from the base, None where it is not recorded.
        heard: digests of the audio that each of the recipe's statistics is of.
    """

    recipe: Recipe
    base: str
    base_digests: Mapping[str, Sketch]
    deltas: tuple[MergedDelta, ...]
    lorsmerge: str
    torch: str
    step_norm: float | None
    heard: tuple[Mapping[str, Sketch], ...]


@dataclass(frozen=True)
class RunRecord:
    """What `finetune` recorded of itself in `run.json`, as far as it is there.

    Attributes:
        base: start of the base's fingerprint.
        base_name: what the base was called, or its Hub id.
        trained_on: as in `MergedDelta`.
        learning_rate, seed: of the training.
        leading_space: where the space before a label came from, empty where it is not recorded.
        digests: as in `MergedDelta`.
    """

    base: str
    base_name: str
    trained_on: tuple[Mapping[str, Any], ...]
    learning_rate: float | None
    seed: int | None
    leading_space: str
    digests: Mapping[str, Sketch]


def merge_record(document: Mapping[str, Any]) -> MergeRecord:
    """Read the record of a merge, whose author is not known.

    Raises:
        ValueError: a field is missing, or is none that a merge writes.
    """
    try:
        recipe = recipe_of(_table(document, "recipe", needed=True), MERGE)
        raise_all(method_faults(recipe.method))
    except LorsmergeError as error:
        raise ValueError(str(error)) from None
    deltas = tuple(_merged_delta(found) for found in _rows(document, "deltas"))
    if len(deltas) != len(recipe.deltas):
        raise ValueError(f"{len(deltas)} deltas for the {len(recipe.deltas)} of the recipe")
    base = _table(document, "base", needed=True)
    return MergeRecord(
        recipe,
        _string(base, "fingerprint"),
        recorded_digests(base),
        deltas,
        _string(document, "lorsmerge"),
        _string(_table(document, "versions"), "torch"),
        _number(document, "step_norm"),
        tuple(recorded_digests(found) for found in _rows(document, "statistics")),
    )


def run_record(document: Mapping[str, Any]) -> RunRecord:
    """Read the record of a fine-tune, whose author is not known.

    Raises:
        ValueError: a field is none that `finetune` writes.
    """
    settings = _table(document, "settings")
    return RunRecord(
        _string(document, "base"),
        _string(document, "base_name"),
        training_rows(document),
        _number(settings, "learning_rate"),
        _whole(settings, "seed"),
        _string(document, "leading_space"),
        recorded_digests(document),
    )


def training_rows(document: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Read `trained_on`: language, task, hours and teachers of each part of the training data.

    Raises:
        ValueError: a language or task that is not one, or a value of another type.
    """
    rows = []
    for row in _rows(document, "trained_on"):
        hours = _number(row, "hours")
        labels = {"language": _string(row, "language"), "task": _string(row, "task")}
        check_labels(**labels)
        teachers = [
            {
                "model": _string(teacher, "model"),
                "identity": _string(teacher, "identity"),
                "utterances": _whole(teacher, "utterances"),
            }
            for teacher in _rows(row, "teachers")
        ]
        rows.append(
            labels
            | ({} if hours is None else {"hours": hours})
            | ({"teachers": teachers} if teachers else {})
        )
    return tuple(rows)


def ratios_of(pruning: Mapping[str, Any]) -> dict[str, float]:
    """Return the ratios in what a file says of its pruning.

    Raises:
        ValueError: one is not a finite number.
    """
    found = {key: _number(pruning, key) for key in RATIOS}
    return {key: value for key, value in found.items() if value is not None}


def _merged_delta(document: Mapping[str, Any]) -> MergedDelta:
    language, task = _string(document, "language"), _string(document, "task")
    check_labels(language, task)
    training = _table(document, "training")
    own = ({"language": language, "task": task},) if language and task else ()
    return MergedDelta(
        _string(document, "fingerprint", needed=True),
        language,
        task,
        ratios_of(_table(document, "pruning")),
        training_rows(training) or own,
        _whole(training, "seed"),
        recorded_digests(training),
    )


def _table(document: Mapping[str, Any], key: str, *, needed: bool = False) -> Mapping[str, Any]:
    found = document.get(key, None if needed else {})
    if not isinstance(found, dict):
        raise ValueError(f"`{key}` is not a table")
    return found


def _rows(document: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = document.get(key, [])
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError(f"`{key}` is not a list of tables")
    return found


def _string(document: Mapping[str, Any], key: str, *, needed: bool = False) -> str:
    found = document.get(key, None if needed else "")
    if not isinstance(found, str):
        raise ValueError(f"`{key}` is not a string")
    return found


def _number(document: Mapping[str, Any], key: str) -> float | None:
    found = document.get(key)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"`{key}` is not a number")
    if not abs(found) <= LARGEST:  # false for NaN too
        raise ValueError(f"`{key}` is not a finite number")
    return found


def _whole(document: Mapping[str, Any], key: str) -> int | None:
    found = _number(document, key)
    if isinstance(found, float):
        raise ValueError(f"`{key}` is not a whole number")
    return found


def trained_on(data: DataReport) -> list[dict[str, Any]]:
    """Return language, task and hours of each part of a fine-tune's training data.

    A part whose texts were made by models names these as its `teachers`.
    """
    return [
        {"language": group.language, "task": group.task, "hours": round(group.hours, 4)}
        | _teachers(row for row in data.utterances if _pair(row) == (group.language, group.task))
        for group in data.groups
    ]


def _pair(row: Utterance) -> tuple[str, str]:
    return row.language, row.task


def _teachers(rows: Iterable[Utterance]) -> dict[str, Any]:
    """Return the teachers of rows with pseudo-labels, and how many each made; empty without any."""
    made = Counter((row.label.teacher, row.label.identity) for row in rows if row.label)
    teachers = [
        {"model": published_name(model), "identity": identity, "utterances": count}
        for (model, identity), count in made.items()
    ]
    return {"teachers": teachers} if teachers else {}


def pruning_text(pruning: Mapping[str, Any]) -> str:
    """Return the ratios that a delta was pruned by, as its header has them: `svp 0.05, mp 0.4`."""
    return ", ".join(f"{ratio} {pruning[ratio]}" for ratio in RATIOS if ratio in pruning)


def header_of(vector: TaskVector) -> dict[str, Any]:
    """Return what a delta's header says of its making; empty for a fine-tune in a delta's place."""
    if not isinstance(vector, StoredVector):
        return {}
    made = vector.provenance
    tables = {"pruning": dict(made.pruning), "training": dict(made.training)}
    named = {"task": made.task, "language": made.language}
    return named | {key: table for key, table in tables.items() if table}


def training_of(folder: Path | None) -> dict[str, Any]:
    """Return what is known of the training of a model folder.

    For a folder of `finetune`: base, data by language and task, learning rate, seed, where the
    space at the start of its labels came from, and digests of its data. For a folder of `merge`:
    the digests alone. For any other: nothing.
    """
    if folder is None:
        return {}
    document = _read(folder / RUN)
    found: dict[str, Any] = {}
    if {"base", "trained_on", "settings"} <= document.keys():
        try:
            run = run_record(document)
        except ValueError:
            return {}
        found = {
            "base": run.base,
            "trained_on": [dict(row) for row in run.trained_on],
            "learning_rate": run.learning_rate,
            "seed": run.seed,
        }
        if run.leading_space:
            found["leading_space"] = run.leading_space
    digests = union(_recorded_digests(folder, ""))
    return found | digests_entry(digests)


def learnt_by(vector: TaskVector) -> list[tuple[str, str]]:
    """Return languages and tasks that a delta, or a fine-tune in its place, was trained on.

    Either is empty where only the other is known; there are no pairs where nothing is.
    """
    about = header_of(vector)
    if isinstance(vector, FinetunedTaskVector):
        about = {"training": training_of(vector.finetuned.folder)}
    try:
        return _merged_delta({"fingerprint": "", **about}).pairs
    except ValueError:  # a stranger wrote it
        return []


def trained_digests(checkpoint: Checkpoint, name: str) -> Trained:
    """Return digests of all data that a model was trained on, as far as its files have them.

    Args:
        checkpoint: of the model.
        name: of the model; data of a merge has the name of its delta.
    """
    if checkpoint.folder is not None:
        return _recorded_digests(checkpoint.folder, name)
    return _merged_digests(_merge_document(checkpoint))


def vector_digests(vector: TaskVector) -> Trained:
    """Return digests of the data that a delta, or a fine-tune in its place, was trained on."""
    name = published_name(str(vector.path))
    if isinstance(vector, FinetunedTaskVector):
        return [(name, union(trained_digests(vector.finetuned, name)))]
    if not isinstance(vector, DeltaFile):
        return []
    return [(name, recorded_digests(vector.provenance.training))]


def model_digests(
    checkpoint: Checkpoint, name: str, applied: Iterable[tuple[TaskVector, float]]
) -> Trained:
    """Return digests of the data behind a model and the deltas applied to it, those that are known.

    Args:
        checkpoint: of the model.
        name: of the model.
        applied: deltas that are added to it, each with its scale.
    """
    found = [*trained_digests(checkpoint, name)]
    for vector, _ in applied:
        found += vector_digests(vector)
    return [(name, digests) for name, digests in found if digests]


def _recorded_digests(folder: Path, name: str) -> Trained:
    """Read the digests that `finetune` or `merge` recorded in a folder."""
    run = _read(folder / RUN)
    if run:
        try:
            return [(name, recorded_digests(run))]
        except ValueError:
            return []
    return _merged_digests(_read(folder / MERGE))


def _merged_digests(document: Mapping[str, Any]) -> Trained:
    try:
        record = merge_record(document)
    except ValueError:
        return []
    deltas = zip(record.recipe.deltas, record.deltas, strict=True)
    return [
        (published_name(record.recipe.base), record.base_digests),
        *((published_name(entry.path), delta.digests) for entry, delta in deltas),
        *zip(map(published_name, record.recipe.stats), record.heard, strict=False),
    ]


def made_from(
    checkpoint: Checkpoint,
    applied: Sequence[tuple[TaskVector, float]],
    method: str,
    coef: Sequence[str] = (),
) -> dict[str, Any]:
    """Return where a model's weights come from.

    Args:
        checkpoint: the weights.
        applied: deltas that are added to them, each with its scale.
        method: by which they are added.
        coef: rules that their scales are multiplied by.

    Returns:
        `kind` is `merge` (with `method`, `base`, `coef` where there are rules, `step_norm` where it
        was recorded, and `deltas`, each with its ratios, scale and what it was trained on) or
        `finetune` (as `training_of`); empty for any other model.

    Raises:
        UnreadableFile: the header of a delta is damaged.
    """
    if applied:
        deltas = []
        for vector, scale in applied:
            document = {"fingerprint": vector.identity()} | header_of(vector)
            try:
                deltas.append(_delta(_merged_delta(document), {"scale": scale}))
            except ValueError as error:
                what = f"{vector.path}: the delta's header is damaged ({error})."
                raise UnreadableFile(what, "Make it again with `lorsmerge delta`.") from None
        made = {"kind": "merge", "method": _method(deltas, method), "deltas": deltas}
        return made | ({"coef": list(coef)} if coef else {})
    merge = _merge_document(checkpoint)
    if merge:
        return _merged(merge)
    training = training_of(checkpoint.folder)
    training.pop("digests", None)  # a results file has what was found by them
    return {"kind": "finetune", **training} if training else {}


def recorded_step_norm(path: Path) -> float | None:
    """Return the L2 norm of a merge's step as the merge recorded it; None where it did not.

    Args:
        path: a merged model (folder, file or Hub id), or its `lorsmerge.json`.

    Raises:
        LorsmergeError: the model cannot be opened.
    """
    document = _read(path) if path.suffix == ".json" else _merge_document(Checkpoint(path))
    try:
        return merge_record(document).step_norm
    except ValueError:
        return None


def _merge_document(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read `lorsmerge.json` of a folder, or its copy in the header of a file; empty without one."""
    if checkpoint.folder is not None:
        return _read(checkpoint.folder / MERGE)
    try:
        return json_object(SafetensorsFile(checkpoint.files[0]).metadata.get("lorsmerge", "{}"))
    except (ValueError, LorsmergeError):
        return {}


def _merged(document: Mapping[str, Any]) -> dict[str, Any]:
    try:
        record = merge_record(document)
    except ValueError:
        return {}
    deltas = [
        _delta(found, entry)
        for found, entry in zip(record.deltas, record.recipe.to_dict()["deltas"], strict=True)
    ]
    return {
        "kind": "merge",
        "method": _method(deltas, record.recipe.method or method_of(())),
        "base": record.base[:SHOWN],
        "deltas": deltas,
    } | {
        key: value
        for key, value in (("coef", list(record.recipe.rules)), ("step_norm", record.step_norm))
        if value not in ([], None)
    }


def _delta(delta: MergedDelta, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a delta of a merge, with the merge's ratios or else those of the file."""
    found = {
        "fingerprint": delta.fingerprint[:SHOWN],
        "trained_on": [dict(row) for row in delta.trained_on],
        "seed": delta.seed,
        "scale": entry.get("scale"),
    }
    ratios = entry if {*RATIOS} & entry.keys() else delta.pruning
    found |= {key: ratios.get(key) for key in RATIOS}
    return {key: value for key, value in found.items() if value is not None}


def _method(deltas: Sequence[Mapping[str, Any]], method: str) -> str:
    """Return what a merge amounts to, some of whose deltas `prune` has pruned."""
    return method_of_pruned(method, {key for delta in deltas for key in RATIOS if key in delta})


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is none."""
    try:
        return json_object(read_document(path))
    except (OSError, ValueError, LorsmergeError):
        return {}
