"""Test sets by speakers who differ, drawn at random, with a truth that is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LOGIT = -1.7  # of the chance that a word is wrong: 15 % for the speaker in the middle
SPREAD = 0.6  # of the speakers' logits: most are between 5 and 40 %
UNEVEN = 0.4  # variance of the speakers' shares of utterances, of mean 1
PER_SET = 200  # utterances, about


def wrong(logits: Floats) -> Floats:
    return 1 / (1 + np.exp(-logits))


def utterances(speakers: int, random: np.random.Generator) -> NDArray[np.int64]:
    """How many each speaker has: some a few, some many."""
    share = random.gamma(1 / UNEVEN, UNEVEN, speakers)
    return np.maximum(1, random.poisson(max(4, PER_SET // speakers) * share))


def error_blocks(logits: Floats, counts: NDArray[np.int64], random: np.random.Generator) -> Floats:
    """(speakers, 2): wrong words and all words."""
    words = np.array([random.integers(4, 15, count).sum() for count in counts])
    return np.stack([random.binomial(words, wrong(logits)), words], axis=1).astype(np.float64)


def bleu_blocks(logits: Floats, counts: NDArray[np.int64], random: np.random.Generator) -> Floats:
    """(speakers, 10), as `bleu.statistics` has them: translations with words wrong here and there."""
    return np.array([_bleu(p, n, random) for p, n in zip(wrong(logits), counts, strict=True)])


def _bleu(chance: float, count: int, random: np.random.Generator) -> Floats:
    lengths = random.integers(5, 14, count)
    right = (random.random((count, 13)) > chance) & (np.arange(13) < lengths[:, None])
    matches, totals, run = [], [], right
    for order in range(1, 5):
        matches.append(run.sum())
        totals.append(np.maximum(0, lengths - order + 1).sum())
        run = run[:, :-1] & right[:, order:]
    return np.array([lengths.sum(), lengths.sum(), *matches, *totals], dtype=np.float64)
