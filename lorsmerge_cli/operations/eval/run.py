"""Decode test sets with models, and score the hypotheses."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from lorsmerge_cli.data.leakage import Shared
from lorsmerge_cli.data.utterance import Answer, Utterance, reasons
from lorsmerge_cli.errors import (
    LorsmergeError,
    Mismatch,
    UnreadableFile,
    UsageFault,
    named,
    raise_all,
)
from lorsmerge_cli.inputs import read_json
from lorsmerge_cli.metrics import METRICS, check_metrics
from lorsmerge_cli.metrics.metric import Metric, Scoring
from lorsmerge_cli.metrics.normalisation import MARK_LANGUAGES, SPELLING, check_choice
from lorsmerge_cli.operations.eval.hearing import AS_CLIPS, Hearing
from lorsmerge_cli.operations.eval.leakage import Group, leaks_of
from lorsmerge_cli.operations.eval.settings import settings_of
from lorsmerge_cli.outputs import atomic_file, check_output, write_json
from lorsmerge_cli.recipe.record import made_from
from lorsmerge_cli.results.document import EvalReport, TestSet
from lorsmerge_cli.results.hypotheses import (
    HypothesesFile,
    KnownHypothesis,
    by_group,
    check_answered_once,
    check_made_alike,
    finished_sets,
    read_hypotheses,
    write_trn,
)
from lorsmerge_cli.results.records import (
    Hypothesis,
    Record,
    compare,
    matched_segments,
    metric_of,
    score,
)
from lorsmerge_cli.results.suite import Suite
from lorsmerge_cli.speech.decoding.clips import DecodingSettings, fitting_batch
from lorsmerge_cli.speech.engines import DEFAULT, ENGINES, Decoder, Engine, check_engine
from lorsmerge_cli.speech.features import FEATURES_SHARE, Features, SharedFeatures
from lorsmerge_cli.speech.memory import limited
from lorsmerge_cli.speech.model import SpeechModel
from lorsmerge_cli.speech.source import (
    ModelSource,
    process_device,
    processes,
)
from lorsmerge_cli.usage import check_hypotheses, check_names, check_trn


def run_evaluation(
    models: Sequence[ModelSource],
    test_sets: Sequence[TestSet],
    *,
    scoring: Scoring,
    beam: int = 20,
    batch_size: int | None = None,
    max_tokens: int | None = None,
    memory: int | None = None,
    engine: str = DEFAULT,
    dtype: str = "float32",
    device: str = "auto",
    hearing: Hearing = AS_CLIPS,
    hypotheses: Path | None = None,
    output: Path | None = None,
    force: bool = False,
    trn: Path | None = None,
    compared: tuple[str, str] | None = None,
    suite: Suite | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EvalReport:
    """Score models on test sets.

    Args:
        models: with different names; the first one's list of suppressed tokens is used for all that
            have its vocabulary.
        test_sets: utterances with durations.
        scoring: metrics and normalisation.
        beam: as in `DecodingSettings`.
        batch_size: as in `DecodingSettings`.
        max_tokens: as in `DecodingSettings`.
        memory: bytes that each process may use in all; None for no limit.
        engine: a name in `ENGINES`.
        dtype: to compute in, as `compute_dtype` reads it; of `ct2` also `int8`.
        device: as in `resolve_device`.
        hearing: of recordings longer than the window, or in languages that are identified.
        hypotheses: JSON lines to write hypotheses to, and to resume from.
        output: the results file.
        force: replace a results file that exists.
        trn: folder for sclite's transcripts.
        compared: names of two models for a paired test.
        suite: that gives test sets a normalisation and published figures.
        progress: called with the utterances just done and those in all.

    Raises:
        LorsmergeError: see the subclasses; what was decoded stays in `hypotheses`.
    """
    scoring = suite.scoring(scoring, [each.name for each in test_sets]) if suite else scoring
    inputs = [path for model in models for path in model.files]
    inputs += [test_set.path for test_set in test_sets if test_set.path]
    faults = [] if hypotheses is None else check_hypotheses(hypotheses, inputs)
    inputs += [hypotheses] if hypotheses else []
    utterances = [row for data in test_sets for row in data.utterances]
    faults += _faults(
        [each.name for each in models], utterances, scoring, output, force, trn, compared, inputs
    )
    raise_all(faults + check_engine(engine, dtype, device))
    state, decoder = processes(device), ENGINES[engine]
    dtype = decoder.dtype(dtype, device)
    raise_all([fault for model in models for fault in decoder.unfit(model)])
    asked = DecodingSettings(beam, batch_size, max_tokens, memory=limited(memory))
    leaks, leakage = leaks_of(models, test_sets) if state.is_main_process else ([], {})
    warnings = [*_other_spellings(models), *hearing.warnings(models), *leaks]
    file, count = HypothesesFile(hypotheses), len(models) * len(utterances)
    rows, speed, origins = list[Hypothesis](), dict[str, float](), dict[str, dict[str, Any]]()
    first: tuple[dict[str, int], DecodingSettings] | None = None
    kept = SharedFeatures(int(FEATURES_SHARE * asked.memory.free()) if len(models) > 1 else 0)
    for model in models:
        run = _Run(model, decoder, dtype, process_device(device, state), file, state, hearing)
        features = kept.of(run.speech)
        own = run.speech.vocabulary, asked.with_lists_of(run.speech)
        first = first or own
        if not (same := own[0] == first[0]):  # else the lists' ids are other tokens, maybe the end
            warnings.append(_own_lists(model, models[0]))
        decoding = first[1] if same else own[1]
        for test_set in test_sets:
            rows += run.answer(test_set, decoding, features, lambda done: progress(done, count))
        if run.decoded_seconds:
            speed[model.name] = run.decoded_seconds / run.elapsed
        origins[model.name] = run.origin(decoding)
        run.close()
    asked, heard = first[1] if first else asked, hearing.about(models[0].without_weights, asked)
    settings = settings_of(asked, scoring, dtype, decoder.stamp(dtype), heard) | _about(test_sets)
    report = _report(
        rows, scoring, settings, speed, output, force, trn, compared, state.is_main_process,
        origins, leakage, suite,
    )  # fmt: skip
    warnings += [*_cut_short(rows, max_tokens), *hearing.unheard(rows), *report.warnings]
    return replace(report, warnings=tuple(warnings))


def _own_lists(model: ModelSource, first: ModelSource) -> str:
    return (
        f"{model.name} has another vocabulary than {first.name}, so its own list of suppressed "
        "tokens is used."
    )


def _cut_short(rows: Sequence[Hypothesis], max_tokens: int | None) -> list[str]:
    """Return a warning of hypotheses that --max-tokens ended."""
    cut = 0 if max_tokens is None else sum(bool(row.cut) for row in rows)
    if not cut:
        return []
    return [
        f"{cut} of {len(rows)} hypotheses were cut at --max-tokens {max_tokens}: what would have come "
        "after is missing from the scores."
    ]


def _about(test_sets: Sequence[TestSet]) -> dict[str, Any]:
    """Return each test set's split, commit on the Hub, rows that cannot be scored, and shard."""
    about: dict[str, dict[str, Any]] = {
        "splits": {each.name: each.split for each in test_sets if each.split},
        "hub": {each.name: each.hub for each in test_sets if each.hub},
        "selected": {each.name: list(each.selected) for each in test_sets if each.selected},
        "dropped": {each.name: reasons(each.drops) for each in test_sets if each.drops},
        "partial": {
            each.name: (len(each.utterances), each.of)
            for each in test_sets
            if len(each.utterances) < each.of
        },
    }
    return {key: value for key, value in about.items() if value or key == "splits"}


def rescore(
    hypotheses: Path | Sequence[Path],
    *,
    scoring: Scoring,
    output: Path | None = None,
    force: bool = False,
    trn: Path | None = None,
    compared: tuple[str, str] | None = None,
    suite: Suite | None = None,
) -> EvalReport:
    """Score hypotheses of earlier runs again, without a model.

    Args:
        hypotheses: a file, or several, whose lines are scored as those of one: shards of a set,
            or models that were decoded apart.
        scoring: as in `run_evaluation`, and so the others.
        output: the results file.
        force: replace it.
        trn: folder for sclite's transcripts.
        compared: names of two models for a paired test.
        suite: that gives test sets a normalisation and published figures.

    Raises:
        UnreadableFile: a file holds no hypotheses.
        Mismatch: its models answered different utterances, or a model one twice or in two ways.
    """
    files = [hypotheses] if isinstance(hypotheses, Path) else list(hypotheses)
    known = []
    for path in files:
        known += read_hypotheses(path, named=len(files) > 1)
    name = ", ".join(map(str, files))
    if not known:  # a shard of a small set may have none
        raise UnreadableFile(f"{name} holds no hypotheses.", "Run eval --hypotheses first.")
    check_answered_once(name, known)
    check_made_alike(name, known)
    partial = {
        dataset: (done, of)
        for dataset, (done, of) in finished_sets(name, known).items()
        if done < of
    }
    rows = [line.row for line in known]
    scoring = suite.scoring(scoring, {row.dataset for row in rows}) if suite else scoring
    names = list({row.model: 0 for row in rows})
    raise_all(_faults(names, rows, scoring, output, force, trn, compared, files))
    settings = settings_of(None, scoring, None)
    ways = {found.row.model: found.decoding for found in known}
    if any(ways.values()):
        settings["decoded"] = ways
    if partial:
        settings["partial"] = partial
    report = _report(
        rows, scoring, settings, {}, output, force, trn, compared, True, _identities(known),
        suite=suite,
    )  # fmt: skip
    warnings = [
        f"{name} is unfinished: the scores of {dataset} are of {done} of {of} utterances."
        for dataset, (done, of) in partial.items()
    ]
    several_ways = dict.fromkeys(found.decoding for found in known)
    if len(several_ways) > 1:
        warnings.append(
            f"{name} holds hypotheses that were decoded in {len(several_ways)} ways: "
            f"{'; '.join(several_ways)}. Their scores differ by that, too."
        )
    return replace(report, warnings=(*warnings, *report.warnings))


def _identities(known: Sequence[KnownHypothesis]) -> dict[str, dict[str, Any]]:
    """Return name -> the identity of its weights, of models that have one."""
    found: dict[str, set[str]] = {}
    for line in known:
        found.setdefault(line.row.model, set()).add(line.identity)
    return {
        name: {"identity": max(ids)} for name, ids in found.items() if len(ids) == 1 and all(ids)
    }


class _Run:
    """Decodes all test sets with one model."""

    def __init__(
        self,
        source: ModelSource,
        engine: Engine,
        dtype: str,
        device: str,
        file: HypothesesFile,
        state: PartialState,
        hearing: Hearing,
    ) -> None:
        self.source, self.dtype, self.device, self.file, self.state = (
            source, dtype, device, file, state,
        )  # fmt: skip
        self.hearing = hearing
        self.decoded_seconds = self.elapsed = 0.0
        self.identity = source.identity()
        self._stamp = engine.stamp(dtype)
        self._decoder: Decoder | None = engine.open(source, dtype, device)

    @property
    def decoder(self) -> Decoder:
        """The model in the engine, until `close`."""
        assert self._decoder is not None
        return self._decoder

    @property
    def speech(self) -> SpeechModel:
        """The model, likewise."""
        return self.decoder.speech

    def origin(self, decoding: DecodingSettings) -> dict[str, Any]:
        """Return the identity of the weights, how they were made and on what they were run."""
        source = self.source
        made = made_from(source.checkpoint, source.applied, source.method, source.coef)
        found = {"identity": self.identity, "made_from": made}
        return found | ({"decoded_on": self._decoded_on(decoding)} if self.decoded_seconds else {})

    def _decoded_on(self, decoding: DecodingSettings) -> dict[str, Any]:
        """Return what the speed depends on, beside the model and the beams."""
        device = self.speech.model.device
        where: dict[str, Any] = {"device": device.type, "threads": torch.get_num_threads()}
        if device.type == "cuda":
            where = {"device": torch.cuda.get_device_name(device)}
        batch = decoding.batch_size or fitting_batch(self.speech, decoding.beam, decoding.memory)
        return (
            where
            | {
                "dtype": self.dtype,
                "batch_size": batch,
                "processes": self.state.num_processes,
            }
            | ({"engine": self._stamp} if self._stamp else {})
        )

    def answer(
        self,
        test_set: TestSet,
        decoding: DecodingSettings,
        features: Features,
        progress: Callable[[int], None],
    ) -> list[Hypothesis]:
        """Return hypotheses of a test set in its order; `decoding` has its lists filled in."""
        computed = f"engine:{self._stamp}" if self._stamp else self.dtype
        made_by = f"{self.identity}|{decoding.signature(computed)}"
        made_by += self.hearing.signature(self.speech, decoding)
        answers = self.file.known(
            self.source.name, test_set.name, made_by, test_set.utterances, test_set.of
        )
        wanted = [row for row in test_set.utterances if row.id not in answers]
        if not test_set.utterances and self.state.is_main_process:
            self.file.begin()
        progress(len(test_set.utterances) - len(wanted))
        mine = wanted[self.state.process_index :: self.state.num_processes]
        if mine:
            self.hearing.prepare(self.decoder, decoding)
        began = time.perf_counter()
        answers |= self._decode(mine, test_set, decoding, features, made_by, progress)
        self.elapsed += time.perf_counter() - began
        self.decoded_seconds += sum(row.duration or 0.0 for row in wanted)
        return [self._hypothesis(row, answers[row.id], test_set) for row in test_set.utterances]

    def _decode(
        self,
        mine: Sequence[Utterance],
        test_set: TestSet,
        decoding: DecodingSettings,
        features: Features,
        made_by: str,
        progress: Callable[[int], None],
    ) -> dict[str, Answer]:
        alone = self.state.num_processes == 1

        def keep(row: Utterance, answer: Answer) -> None:
            if alone:
                self.file.add([(self._hypothesis(row, answer, test_set), row)], made_by)
            progress(self.state.num_processes)

        answers = self.hearing.answers(self.decoder, mine, decoding, keep, features)
        if alone:
            return answers
        gathered: dict[str, Answer] = dict(gather_object(list(answers.items())))
        if self.state.is_main_process:
            rows = {row.id: row for row in test_set.utterances}
            self.file.add(
                [
                    (self._hypothesis(rows[name], answer, test_set), rows[name])
                    for name, answer in gathered.items()
                ],
                made_by,
            )
        return gathered

    def _hypothesis(self, row: Utterance, answer: Answer, test_set: TestSet) -> Hypothesis:
        return Hypothesis(
            model=self.source.name,
            dataset=test_set.name,
            id=row.id,
            language=row.language,
            task=row.task,
            reference=row.text,
            hypothesis=answer.text,
            seconds=row.duration or 0.0,
            speaker=row.speaker,
            cut=answer.cut,
            source_text=row.source_text,
            gender=row.gender,
            identified=answer.language,
            unheard=answer.unheard,
            segments=row.segments if row.segments and answer.segments is not None else None,
            heard_segments=answer.segments,
        )

    def close(self) -> None:
        """Free the model before the next one is read."""
        self._decoder = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _other_spellings(models: Sequence[ModelSource]) -> list[str]:
    """Return warnings of models with another table of English spellings than scores are made with."""
    others = []
    for model in models:
        path = model.processor / "normalizer.json"
        with suppress(OSError, ValueError, LorsmergeError):
            if read_json(path) != read_json(SPELLING):
                others.append(
                    f"{path} is not Whisper's table of English spellings; --normalise english uses "
                    "Whisper's for every model."
                )
    return others


def _faults(
    names: Sequence[str],
    rows: Sequence[Utterance | Hypothesis],
    scoring: Scoring,
    output: Path | None,
    force: bool,
    trn: Path | None,
    compared: tuple[str, str] | None,
    inputs: Sequence[Path],
) -> list[LorsmergeError]:
    faults = check_metrics(scoring.metrics)
    faults += check_choice(scoring.normalisation)
    faults += check_names(names, compared)
    if output is not None:
        faults += check_output(output, inputs=inputs, size=1 << 20, force=force)
    if trn is not None:
        faults += check_trn(trn, inputs, force=force)
    return faults + _metric_faults(rows, scoring)


def _metric_faults(
    rows: Sequence[Utterance | Hypothesis], scoring: Scoring
) -> list[LorsmergeError]:
    """Return faults of rows that cannot be scored by the metrics asked for."""
    faults: list[LorsmergeError] = []
    for key in scoring.asked:
        if (metric := METRICS.get(key)) is None:  # a fault already
            continue
        own = [row for row in rows if row.task == metric.task]
        lacking = [row.id for row in own if not (row.source_text or "").strip()]
        if not own:
            faults.append(
                UsageFault(
                    f"--metric {key} scores {metric.task}, and the data has none of that.",
                    "Drop the option, or add such data.",
                )
            )
        elif metric.needs_source and lacking:
            faults.append(
                Mismatch(
                    f"--metric {key} compares a translation with its source, and {len(lacking)} of "
                    f"{len(own)} {metric.task} utterances have no transcript ({named(lacking)}).",
                    "Give each row of the manifest a source_text, and decode again.",
                )
            )
    return faults


def _compared(record: Record, scoring: Scoring) -> list[Metric]:
    """Return the metrics of a comparison: the reported one, and those that were asked for."""
    asked = [METRICS[key] for key in scoring.asked if METRICS[key].name in record.scores]
    return list(dict.fromkeys([metric_of(record), *asked]))


def _report(
    rows: Sequence[Hypothesis],
    scoring: Scoring,
    settings: dict[str, Any],
    speed: dict[str, float],
    output: Path | None,
    force: bool,
    trn: Path | None,
    compared: tuple[str, str] | None,
    main: bool,
    models: dict[str, dict[str, Any]] | None = None,
    leakage: Mapping[Group, tuple[Shared, ...]] | None = None,
    suite: Suite | None = None,
) -> EvalReport:
    settings = settings | ({"suite": suite.record.to_dict()} if suite else {})
    groups = by_group(rows) if main else {}
    records = tuple(
        replace(score(group, scoring), leakage=(leakage or {}).get(key))
        for key, group in groups.items()
    )
    comparisons = [
        (
            a,
            b,
            metric,
            compare([(a, b)], scoring, metric),
            matched_segments(a, b, scoring, metric),
        )
        for a, b in permutations(records, 2)
        if (a.model, b.model) == compared
        and not a.silent
        and (a.dataset, a.language, a.task) == (b.dataset, b.language, b.task)
        for metric in _compared(a, scoring)
    ]
    broken = {r.language for r in records if r.details.get("normalisation") == "basic"}
    warnings = tuple(
        f"{language}: basic makes spaces of its vowel signs, so its words are broken or lost; "
        "--normalise auto keeps them."
        for language in sorted(broken & MARK_LANGUAGES)
    )
    report = EvalReport(
        records, tuple(comparisons), settings, speed, warnings, main, models or {}, scoring,
        suite.record if suite else None,
    )  # fmt: skip
    if main and output is not None:
        with atomic_file(output, force=force) as partial:
            write_json(partial, report.to_dict())
    if main and trn is not None:
        write_trn(trn, records, force=force)
    return report
