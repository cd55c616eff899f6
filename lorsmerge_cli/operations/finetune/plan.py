"""Plan a fine-tune: check its data and settings, and report every fault."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lorsmerge_cli.checkpoint.model_writer import check_companions, notes_on_code
from lorsmerge_cli.core.sketch import Sketch, union
from lorsmerge_cli.data.conditions import Condition
from lorsmerge_cli.data.dataset import drop_warnings, load_data
from lorsmerge_cli.data.digests import DataDigests, digests_of
from lorsmerge_cli.data.hours import Given
from lorsmerge_cli.data.leakage import repeated, shared_with
from lorsmerge_cli.data.packing import pack, with_previous
from lorsmerge_cli.data.readers import manifest_splits
from lorsmerge_cli.data.report import DataReport
from lorsmerge_cli.data.streaming import with_hours
from lorsmerge_cli.data.utterance import Drop, Utterance, listed
from lorsmerge_cli.errors import (
    LorsmergeError,
    Mismatch,
    UnreadableFile,
    UsageFault,
    raise_all,
)
from lorsmerge_cli.inputs import read_json
from lorsmerge_cli.metrics.normalisation import AUTO, check_choice
from lorsmerge_cli.operations.finetune.skips import read_skipped, row_values, with_removed
from lorsmerge_cli.outputs import check_not_inside, check_output
from lorsmerge_cli.recipe.record import trained_digests
from lorsmerge_cli.speech.batches import row_labels
from lorsmerge_cli.speech.model import SpeechModel
from lorsmerge_cli.speech.sampling import epoch_counts
from lorsmerge_cli.speech.settings import TrainingSettings
from lorsmerge_cli.speech.source import ModelSource, find_model, parse_speech_dtype, processes
from lorsmerge_cli.speech.training import ADAM_COPIES
from lorsmerge_cli.usage import (
    STATE,
    check_reporter,
    check_run,
    check_share,
    check_training,
    check_training_folder,
    training_folder,
)

FLOAT32 = 4  # bytes of an element
RETAIN_SHARE = 0.1


@dataclass(frozen=True)
class DataSource:
    """Data sets, and which of their rows to read.

    Attributes:
        paths: manifests or folders.
        split: of those that have several.
        language: as in `read_manifest`.
        task: as in `read_manifest`.
        format: as in `read_manifest`.
        hours: about how much of each to take.
        seed: of that subset; the training has its own.
        allow_parts: as in `load_data`.
        conditions: as in `load_data`.
    """

    paths: tuple[Path, ...]
    split: str | None = None
    language: str | None = None
    task: str | None = None
    format: str | None = None
    hours: Given = None
    seed: int = 0
    allow_parts: bool = False
    conditions: tuple[Condition, ...] = ()

    def load(self, window: float, *, decoded: bool = False, cut: bool = False) -> DataReport:
        """Read the rows that fit a window of some seconds.

        Args:
            window: seconds.
            decoded: check their audio.
            cut: cut longer rows with segments.
        """
        return load_data(
            self.paths, split=self.split, language=self.language, task=self.task,
            format=self.format, hours=self.hours, seed=self.seed, max_seconds=window,
            allow_parts=self.allow_parts, decoded=decoded, cut=cut, conditions=self.conditions,
        )  # fmt: skip

    def for_share(self, share: float, hours: float) -> DataSource:
        """Return as much of the data as makes a share of it and some hours of other data."""
        wanted = hours * share / (1 - share) / len(self.paths)
        return replace(self, paths=_with_hours(self.paths, wanted), hours=wanted)

    def with_dev_split(self, hours: float | None) -> DataSource | None:
        """Return the dev split of the data sets that have one, or None."""
        paths = tuple(path for path in self.paths if "dev" in manifest_splits(path, self.format))
        paths = _with_hours(paths, hours)
        return replace(self, paths=paths, split="dev", hours=hours) if paths else None


def _with_hours(paths: Sequence[Path], hours: float | None) -> tuple[Path, ...]:
    """Return data sets, those that are streamed until there are other hours; None for all of them."""
    return tuple(with_hours(path, hours) for path in paths)


@dataclass(frozen=True)
class Averaging:
    """How epochs are averaged: the `count` best ones, or the last."""

    count: int = 1
    best: bool = True


@dataclass(frozen=True)
class FinetunePlan:
    """A fine-tune that was checked.

    Attributes:
        source: the base.
        speech: the base in memory, in float32.
        train: rows of the training data, cut and packed.
        spoken: languages and tasks of the data to learn, without what is retained.
        dev: rows to choose epochs by; without them the last epochs are used.
        settings: of the training.
        averaging: of epochs.
        dev_beam: hypotheses in the search when dev rows are decoded.
        normalisation: of the dev rows' texts, one of `CHOICES`.
        device: to train on.
        output: the model folder to write.
        delta: a delta to write as well.
        resume: whether to resume from the state in `folder`.
        force: whether to replace outputs that exist.
        processes: number of processes that train.
        digests: of the training data, and of the base's; empty if none are recorded.
        warnings: what the user should know.
        skipped: rows of `train` that the interrupted run skipped.
        removed: ids of those that were removed from the data since then.
        report_to: one of `REPORTERS`; None for none.
    """

    source: ModelSource
    speech: SpeechModel
    train: DataReport
    spoken: frozenset[tuple[str, str]]
    dev: DataReport | None
    settings: TrainingSettings
    averaging: Averaging
    dev_beam: int
    normalisation: str
    device: str
    output: Path
    delta: Path | None
    resume: bool
    force: bool
    processes: int
    digests: Mapping[str, Sketch]
    warnings: list[str] = field(default_factory=list)
    skipped: tuple[Drop, ...] = ()
    removed: frozenset[str] = frozenset()
    report_to: str | None = None

    @property
    def folder(self) -> Path:
        """Folder of checkpoints until the model is written."""
        return training_folder(self.output)

    @property
    def steps(self) -> int:
        """Steps of the optimiser."""
        return self.settings.total_steps(len(self.train.utterances))

    @property
    def epoch_counts(self) -> dict[str, int]:
        """Utterances of each language in an epoch, where a temperature changes them; else nothing."""
        counts = Counter(row.language for row in self.train.utterances)
        temperature = self.settings.language_temperature
        return epoch_counts(counts, temperature) if temperature and len(counts) > 1 else {}

    @property
    def memory(self) -> int:
        """Bytes of weights, gradients and moments on each device; activations are not counted."""
        sizes = {name: spec.numel for name, spec in self.source.checkpoint.float_specs.items()}
        frozen = sum(
            size for name, size in sizes.items()
            if self.settings.freeze_encoder and name.startswith("model.encoder.")
        )  # fmt: skip
        return FLOAT32 * (ADAM_COPIES * (sum(sizes.values()) - frozen) + frozen)

    def single(self) -> tuple[str, str] | None:
        """Return language and task of the data to learn if there is one of each, else None."""
        return next(iter(self.spoken)) if len(self.spoken) == 1 else None

    @property
    def leading_space(self) -> str:
        """Where the space at the start of labels comes from: `added`, `tokenizer`, or `none`."""
        own = self.speech.leading_space
        return "none" if own == "added" and self.settings.label_space == "none" else own

    def describe(self) -> dict[str, Any]:
        """Return all that the weights depend on, which has to be the same when the run is resumed."""
        settings = asdict(self.settings) | {"keep": None, "workers": None, "save_steps": None}
        settings["keep_language"] = settings["keep_language"] or None
        size, accumulation = self.settings.batches(self.processes)
        return {
            "base": self.source.identity(),
            "settings": {key: value for key, value in settings.items() if value is not None}
            | {"batch_size": size, "accumulation": accumulation, "processes": self.processes},
            "averaging": asdict(self.averaging),
            "leading_space": self.leading_space,
            "dev_beam": self.dev_beam,
            "normalisation": self.normalisation,
            "train": fingerprint(self.train),
            "dev": fingerprint(self.dev) if self.dev else None,
        }


def fingerprint(report: DataReport) -> dict[str, Any]:
    """Return counts, hours, and a digest of the rows without their audio's content."""
    digest = hashlib.sha256()
    for row in report.utterances:
        digest.update(json.dumps(row_values(row)).encode())
    return {
        "utterances": len(report.utterances),
        "hours": round(report.hours, 4),
        "dropped": report.reasons,
        "sha256": digest.hexdigest()[:16],
    }


def plan_finetune(
    base: Path,
    output: Path,
    *,
    train: DataSource,
    dev: DataSource | None,
    settings: TrainingSettings,
    averaging: Averaging,
    retain: DataSource | None = None,
    retain_share: float = RETAIN_SHARE,
    dev_beam: int = 1,
    normalisation: str = AUTO,
    device: str = "auto",
    delta: Path | None = None,
    resume: bool = False,
    force: bool = False,
    digests: bool = True,
    report_to: str | None = None,
) -> FinetunePlan:
    """Check a fine-tune's options, files and data.

    Args:
        base: a Whisper model folder.
        output: the model folder to write.
        train: source of the training data.
        dev: source of the dev set, if there is one.
        settings: of the training.
        averaging: of epochs.
        retain: source of data to mix in, so that what the base can do with it is kept.
        retain_share: of the hours, in what is learnt from.
        dev_beam: hypotheses in the search when dev rows are decoded.
        normalisation: of the dev rows' texts, one of `CHOICES`.
        device: to train on.
        delta: a delta to write as well.
        resume: resume a run that was interrupted.
        force: replace outputs that exist, and discard an interrupted run.
        digests: record digests of the training data.
        report_to: one of `REPORTERS`.

    Raises:
        LorsmergeError: every fault found; nothing is written.
    """
    raise_all(
        [
            *check_training(settings, device),
            *check_choice(normalisation),
            *check_reporter(report_to),
            *check_share("--retain-share", retain_share),
            *([] if dev else _faults_without_dev(settings)),
        ]
    )
    source = find_model(base)
    raise_all(_folder_faults(source))
    inputs = [
        *source.checkpoint.sources, *train.paths, *(dev.paths if dev else ()),
        *(retain.paths if retain else ()),
    ]  # fmt: skip
    faults = _output_faults(source, output, delta, inputs, force)
    raise_all(faults + check_run(output, resume=resume, force=force))
    window = source.window
    speech = source.open(parse_speech_dtype("float32"), "cpu")  # updates are small
    found = train.load(window, cut=True)
    spoken = frozenset((row.language, row.task) for row in found.utterances)
    if retain is not None:
        others = retain.for_share(retain_share, found.hours).load(window, cut=True)
        found = DataReport.joined([found, others])
    raise_all(_control_tokens(speech, found.utterances))
    trained = digests_of(found.utterances)
    found, settings = _windows(speech, found, settings)
    held_out = dev.load(window, decoded=True) if dev else None
    warnings = drop_warnings(found) + (drop_warnings(held_out) if held_out else [])
    warnings += notes_on_code(source.folder)
    warnings += _of_no_effect(settings, found, window)
    warnings += repeated(trained, role="training")
    if held_out is None:
        warnings.append("There is no dev set to choose an epoch by: the last is taken. See --dev.")
    else:
        warnings += _leaks(trained, digests_of(held_out.utterances))
    count = processes(device).num_processes
    settings.batches(count)
    known = [*trained_digests(source.checkpoint, source.name), ("", trained.sketches)]
    recorded = union(known) if digests else {}
    plan = FinetunePlan(
        source, speech, found, spoken, held_out, settings, averaging, dev_beam, normalisation, device, output,
        delta, resume, force, count, recorded, warnings, report_to=report_to,
    )  # fmt: skip
    return _with_skipped(plan, train.hours) if resume else plan


def _output_faults(
    source: ModelSource, output: Path, delta: Path | None, inputs: Sequence[Path], force: bool
) -> list[LorsmergeError]:
    size = FLOAT32 * sum(spec.numel for spec in source.checkpoint.specs.values())
    # a model, two checkpoints with Adam's moments and an epoch or two of weights
    faults = check_output(output, inputs=inputs, size=9 * size, force=force, folder=True)
    if delta is not None:
        faults += check_output(delta, inputs=inputs, size=size, force=force)
        faults += check_training_folder(output, [*inputs, delta])
        faults += check_not_inside(delta, output)
    return faults + check_training_folder(output, inputs)


def _faults_without_dev(settings: TrainingSettings) -> list[LorsmergeError]:
    """Return the faults of settings that need a dev set."""
    given = {"--eval-steps": settings.eval_steps, "--patience": settings.patience}
    return [
        UsageFault(f"{option} needs a dev set to decode.", "Give --dev.")
        for option, value in given.items()
        if value is not None
    ]


def _with_skipped(plan: FinetunePlan, hours: Given) -> FinetunePlan:
    """Return the plan with the rows that the interrupted run skipped, removed since then or not."""
    train, removed = with_removed(plan.train, plan.folder, hours)
    drops = [skipped.drop for skipped in read_skipped(plan.folder).values()]
    note = f"{len(removed)} rows that the run had skipped are gone, and stay skipped."
    return replace(
        plan, train=train, skipped=tuple(drops), removed=frozenset(removed),
        warnings=[*plan.warnings, *([note] if removed else [])],
    )  # fmt: skip


def _folder_faults(source: ModelSource) -> list[LorsmergeError]:
    if source.checkpoint.folder is not None:
        return check_companions(source.checkpoint.folder)
    return [
        UnreadableFile(
            f"{source.checkpoint.path} is a bare file, and a fine-tune is a model folder.",
            "Give the folder with its config and tokenizer.",
        )
    ]


def _control_tokens(speech: SpeechModel, rows: Sequence[Utterance]) -> list[LorsmergeError]:
    """Return a fault for texts with control tokens, as labels that were made for a Trainer have them."""
    found = [(row.id, token) for row in rows if (token := speech.control_token_in(row.text))]
    if not found:
        return []
    name, token = found[0]
    return [
        LorsmergeError(
            f"{len(found)} of {len(rows)} texts of the training data have control tokens in them, the "
            f"first {token} in {name}.",
            "Remove them: language and task are a row's own, and its times are those of its segments.",
        )
    ]


def _of_no_effect(settings: TrainingSettings, data: DataReport, window: float) -> list[str]:
    """Return warnings of settings that change nothing, or less than they say."""
    found = []
    if settings.language_temperature and len({row.language for row in data.utterances}) == 1:
        found.append("--language-temperature changes nothing: the data is of one language.")
    if settings.pack and settings.pack > window:
        found.append(
            f"--pack {settings.pack:g} is more than the model's window: {window:g} s are filled."
        )
    return found


def _windows(
    speech: SpeechModel, report: DataReport, settings: TrainingSettings
) -> tuple[DataReport, TrainingSettings]:
    """Return the rows as they are learnt from, packed if they are to be, and the settings made out."""

    def fits(row: Utterance) -> bool:
        labels = speech.labels(row, settings.label_space, timestamps=bool(settings.timestamps))
        return len(labels) <= speech.longest_label

    rows: Sequence[Utterance] = report.utterances
    if settings.keep_language is None:
        settings = replace(settings, keep_language=len({row.language for row in rows}) == 1)
    if settings.pack:
        rows = pack(rows, min(settings.pack, speech.window), fits, settings.seed)
    if settings.condition:
        rows = with_previous(rows)
        if not any(row.previous for row in rows):
            raise LorsmergeError(
                "No row of the training data follows another one in its recording, and --condition "
                "has nothing to learn from.",
                "Give recordings with segments, or rows with offsets, or leave the option out.",
            )
    return _fitting(speech, replace(report, utterances=tuple(rows)), settings), settings


def _fitting(speech: SpeechModel, report: DataReport, settings: TrainingSettings) -> DataReport:
    """Drop the rows with more labels than the decoder has positions."""
    kept, drops = [], list(report.drops)
    for row in report.utterances:
        if len(row_labels(speech, row, settings)["labels"]) > speech.longest_label:
            drops.append(Drop(row.id, row.audio, "text longer than the decoder"))
        else:
            kept.append(row)
    if not kept:
        raise LorsmergeError(f"No row of the training data can be used: {listed(drops)}.")
    return replace(report, utterances=tuple(kept), drops=tuple(drops))


def _leaks(train: DataDigests, dev: DataDigests) -> list[str]:
    """Return warnings of dev rows, sentences and speakers that are in the training data."""
    return repeated(dev, role="dev") + [
        shared.warning("the training data too", role="dev")
        for shared in shared_with(dev, train.sketches)
    ]


def interrupted_run(plan: FinetunePlan) -> dict[str, Any]:
    """Return the state of the interrupted run that is resumed; empty if a new one begins.

    Raises:
        Mismatch: the interrupted run had other settings.
    """
    path = plan.folder / STATE
    if not (plan.resume and path.is_file()):
        return {}
    try:
        state: dict[str, Any] = read_json(path)
        before = state["run"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UnreadableFile(
            f"{path} is damaged.", "Begin anew with --force in place of --resume."
        ) from None
    now = json.loads(json.dumps(plan.describe()))
    differing = _differences(_without_counts(before), _without_counts(now))
    if differing:
        raise Mismatch(
            f"The interrupted run in {plan.folder} had other settings: {'; '.join(differing)}.",
            "Give the same ones, or begin anew with --force in place of --resume.",
        )
    return state


def _without_counts(run: dict[str, Any]) -> dict[str, Any]:
    """Remove the counts of dropped rows, which may be mended or removed before a run is resumed."""
    return {
        key: {k: v for k, v in value.items() if k != "dropped"} if key in ("train", "dev") and value
        else value
        for key, value in run.items()
    }  # fmt: skip


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Return a text for each setting that differs: `learning_rate was 1e-06 and is 1e-05`."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            text
            for key in sorted({*before, *now})
            for text in _differences(before.get(key), now.get(key), f"{name} {key}".strip())
        ]
    return [] if before == now else [f"{name} was {before} and is {now}"]
