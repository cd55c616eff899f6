"""Score the merges of a search on its dev set, with one model that stays loaded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import LorsmergeError
from lorsmerge_cli.metrics import metrics_of
from lorsmerge_cli.metrics.metric import CorpusScore, ratio
from lorsmerge_cli.metrics.normalisation import AUTO
from lorsmerge_cli.metrics.significance import FEW, Comparison, Floats, block_sums, compare
from lorsmerge_cli.operations.search.merges import RepeatedMerge
from lorsmerge_cli.recipe.recipe import Recipe
from lorsmerge_cli.results.records import dev_statistics
from lorsmerge_cli.speech.decoding.clips import DecodingSettings, decode
from lorsmerge_cli.speech.features import Features
from lorsmerge_cli.speech.loss import token_losses
from lorsmerge_cli.speech.model import SpeechModel

PARTS = (0.25, 0.5, 1.0)  # of the dev set, after which a trial may be stopped

# of a token of the labels, the mean over a dev set
LOSS = CorpusScore(name="loss", unit="nats", higher_is_better=False, score=ratio)

SMALL = 100  # utterances of a task; a dev set with fewer is small

Scores = dict[str, float]  # `ca_asr` -> its score by the reported metric, or its loss
Statistics = dict[str, Floats]  # `ca_asr` -> what its score comes from, (utterances, columns)
Speakers = dict[str, list[str | None]]  # `ca_asr` -> the speakers of its utterances


@dataclass(frozen=True)
class Goal:
    """The objectives of a search, one per task: its reported metric, averaged over languages.

    Methods with `ranking` serve trials where it is true, and finalists where it is false.

    Attributes:
        tasks: one for each objective.
        rank_by: what trials are scored by: `greedy` or `beam` decoding, or `loss`.
    """

    tasks: tuple[str, ...]
    rank_by: str

    def metric(self, task: str, language: str = "", *, ranking: bool) -> CorpusScore:
        """Return what scores a task's statistics; without a language, what it is for most."""
        return LOSS if ranking and self.rank_by == "loss" else metrics_of(language, task)[0]

    def names(self, *, ranking: bool) -> tuple[str, ...]:
        """Return the names of the objectives."""
        if ranking and self.rank_by == "loss":
            return tuple(f"{task} {LOSS.name}" for task in self.tasks)
        return tuple(self.metric(task, ranking=ranking).name for task in self.tasks)

    def directions(self, *, ranking: bool) -> tuple[Literal["minimize", "maximize"], ...]:
        """Return the direction of each objective, as Optuna names it."""
        metrics = [self.metric(task, ranking=ranking) for task in self.tasks]
        return tuple("maximize" if metric.higher_is_better else "minimize" for metric in metrics)

    def scores(self, statistics: Mapping[str, Floats], *, ranking: bool) -> Scores:
        """Return the score of each language and task; a loss that is not finite is infinite."""
        found = {}
        for key, table in statistics.items():
            language, task = key.split("_")
            metric = self.metric(task, language, ranking=ranking)
            found[key] = float(metric.score(table.sum(axis=0)))
            if ranking and self.rank_by == "loss" and math.isnan(found[key]):
                found[key] = math.inf
        return found

    def compare(
        self,
        a: Mapping[str, Floats],
        b: Mapping[str, Floats],
        speakers: Speakers,
        *,
        ranking: bool,
        flips: int = 1,
    ) -> tuple[Comparison, ...]:
        """Return b less a in each objective, in its metric's unit, or in nats.

        Args:
            a: statistics of utterances.
            b: statistics of the same utterances.
            speakers: of at least those, which come first.
            ranking: of trials, or else of finalists.
            flips: of the paired test, for callers that use its p-value.
        """
        found = []
        for task in self.tasks:
            pairs = []
            for key in a:
                if key.rpartition("_")[2] == task:
                    said = speakers[key][: len(a[key])]
                    pairs.append((block_sums(a[key], said), block_sums(b[key], said)))
            found.append(compare(pairs, self.metric(task, ranking=ranking), flips=flips))
        return tuple(found)

    def values(self, scores: Mapping[str, float]) -> tuple[float, ...]:
        """Return the plain mean over languages of each objective, as in the paper's tables."""
        return tuple(
            _mean(value for key, value in scores.items() if key.rpartition("_")[2] == task)
            for task in self.tasks
        )

    def costs(self, values: Sequence[float], *, ranking: bool) -> tuple[float, ...]:
        """Return the values turned so that less is better."""
        return tuple(
            -self.metric(task, ranking=ranking).gain(value)
            for value, task in zip(values, self.tasks, strict=True)
        )


def _mean(values: Iterable[float]) -> float:
    found = [value for value in values if not math.isnan(value)]
    return math.fsum(found) / len(found) if found else math.inf


def _grouped(rows: Sequence[Utterance]) -> dict[str, list[Utterance]]:
    found: dict[str, list[Utterance]] = {}
    for row in rows:
        found.setdefault(f"{row.language}_{row.task}", []).append(row)
    return found


def parts_of(rows: Sequence[Utterance], shares: Sequence[float]) -> list[list[Utterance]]:
    """Return growing parts of a dev set, each with about its share of every language and task."""
    groups = _grouped(rows)
    for group in groups.values():  # an arbitrary order, but the same for every process
        group.sort(key=lambda row: hashlib.sha256(row.id.encode()).digest())
    return [
        [row for group in groups.values() for row in group[: math.ceil(share * len(group))]]
        for share in shares
    ]


def halves_of(
    rows: Sequence[Utterance],
) -> tuple[tuple[Utterance, ...], tuple[Utterance, ...]]:
    """Return two halves of a dev set with about half of each language and task, and no common speaker.

    A row without a speaker is one by its recording.

    Raises:
        LorsmergeError: a language and task has one speaker alone.
    """
    half: dict[str, int] = {}  # by speaker
    for key, group in sorted(_grouped(rows).items()):
        blocks: dict[str, int] = {}
        for row in group:
            blocks[_speaker(row)] = blocks.get(_speaker(row), 0) + 1
        sizes = [0, 0]
        for name in blocks.keys() & half.keys():
            sizes[half[name]] += blocks[name]
        # an arbitrary order, but the same for every process
        order = sorted(blocks, key=lambda name: hashlib.sha256(name.encode()).digest())
        for name in order:
            if name not in half:
                half[name] = int(sizes[1] < sizes[0])
                sizes[half[name]] += blocks[name]
        if not all(sizes):
            raise LorsmergeError(
                f"The dev set is too small to learn from: all {sum(sizes)} utterances of {key} are "
                "of one speaker, or were put into the same half with another set's. One half is "
                "learned from, and the other, of other speakers, says when to stop.",
                "Give more data with --data, or choose lambdas with --sampler tpe.",
            )
    first, second = (tuple(r for r in rows if half[_speaker(r)] == n) for n in (0, 1))
    return first, second


def _speaker(row: Utterance) -> str:
    return f"speaker {row.speaker}" if row.speaker else f"{row.audio.name} {row.start}"


def speakers_of(rows: Sequence[Utterance]) -> Speakers:
    """Return the speakers of each language and task, in the order of statistics of the rows."""
    return {key: [row.speaker for row in group] for key, group in _grouped(rows).items()}


def small_sets(tasks: Sequence[str], rows: Sequence[Utterance]) -> list[str]:
    """Return a warning for each task that a dev set is too small to tell recipes apart by."""
    warnings = []
    for task in tasks:
        groups = [names for key, names in speakers_of(rows).items() if key.endswith(f"_{task}")]
        count = sum(map(len, groups))
        each = [len({name or n for n, name in enumerate(names)}) for names in groups]
        if min(each) < FEW or count < SMALL:
            noun = "speakers" if any(name for names in groups for name in names) else "utterances"
            warnings.append(
                f"The dev set is small for {task}: {count} utterances, of {min(each)} {noun} in one "
                "language. Differences between its best recipes will mostly be chance."
            )
    return warnings


@dataclass
class Scorer:
    """Scores recipes by the model they make.

    Attributes:
        speech: the model whose weights are replaced.
        merge: of the same base.
        rank_by: how trials are scored, of RANKINGS.
        decoding: of the finalists, and of trials ranked by `beam`.
        kept: bytes of features that are kept.
        normalisation: of error rates, one of `CHOICES`.
    """

    speech: SpeechModel
    merge: RepeatedMerge
    rank_by: str
    decoding: DecodingSettings
    kept: int
    normalisation: str = AUTO

    def __post_init__(self) -> None:
        self.decoding = self.decoding.with_lists_of(self.speech)
        self.features = Features(self.speech, self.kept)
        self._kept = self.merge.cache.size, self.kept

    def share_memory(self, workers: int) -> None:
        """Use the share of memory of one of several workers on this machine."""
        merges, features = (size // workers for size in self._kept)
        self.merge.cache.resize(merges)
        self.features.keep_at_most(features)
        memory = replace(self.decoding.memory, workers=workers)
        self.decoding = replace(self.decoding, memory=memory)

    def load(self, recipe: Recipe) -> None:
        """Load the weights of a recipe's merge into the model.

        Raises:
            NonFinite: an input, or the merge, is not finite.
        """
        self._replace_weights(self.merge.weights(recipe))

    def load_base(self) -> None:
        """Load the base's weights into the model."""
        base = self.merge.inputs.base
        self._replace_weights((name, base.read(name)) for name in base.specs)

    def _replace_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        model = self.speech.model
        held = dict(model.named_parameters()) | dict(model.named_buffers())
        with torch.no_grad():
            for name, value in weights:
                if name in held:  # not a second name of a tied tensor
                    held[name].copy_(value)

    def step_norm(self, recipe: Recipe) -> float:
        """Return the L2 norm of the step from the base that a recipe's merge takes."""
        return self.merge.step_norm(recipe)

    def rank(self, parts: Sequence[Sequence[Utterance]]) -> Iterable[Statistics]:
        """Yield statistics of the loaded model on growing parts, by `rank_by`."""
        if self.rank_by == "loss":
            losses: dict[str, tuple[float, int]] = {}
            for rows in parts:
                new = [row for row in rows if row.id not in losses]
                losses |= token_losses(self.speech, new, self.features)
                yield loss_statistics(rows, losses)
            return
        settings = self.decoding if self.rank_by == "beam" else replace(self.decoding, beam=1)
        texts: dict[str, str] = {}
        for rows in parts:
            new = [row for row in rows if row.id not in texts]
            texts |= decode(self.speech, new, settings, features=self.features)
            yield dev_statistics(rows, texts, self.normalisation)

    def score(self, rows: Sequence[Utterance]) -> Statistics:
        """Return statistics of the loaded model as `eval` has them."""
        texts = decode(self.speech, rows, self.decoding, features=self.features)
        return dev_statistics(rows, texts, self.normalisation)


def loss_statistics(
    rows: Sequence[Utterance], losses: Mapping[str, tuple[float, int]]
) -> Statistics:
    """Return nats and tokens of each utterance, (utterances, 2) by language and task."""
    return {
        key: np.array([losses[row.id] for row in group], dtype=np.float64)
        for key, group in _grouped(rows).items()
    }


def ordered(costs: Sequence[Sequence[float]]) -> list[int]:
    """Return indices, the best first: by Pareto front, within one by the sum of their ranks.

    Args:
        costs: of each candidate, of which less is better.
    """
    ranks = np.argsort(np.argsort(costs, axis=0, kind="stable"), axis=0).sum(axis=1)
    return [n for front in pareto(costs) for n in sorted(front, key=lambda n: ranks[n])]


def pareto(costs: Sequence[Sequence[float]]) -> list[list[int]]:
    """Return indices by Pareto front, the best front first.

    Args:
        costs: of each candidate, of which less is better.
    """
    left, fronts = list(range(len(costs))), []
    while left:
        front = [i for i in left if not any(_dominates(costs[j], costs[i]) for j in left)]
        fronts.append(front)
        left = [i for i in left if i not in front]
    return fronts


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)
