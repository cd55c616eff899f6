"""Which rows an epoch of joint training has, where small languages are to count for more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler


def language_shares(counts: Mapping[str, int], temperature: float) -> dict[str, float]:
    """Return the share of each language in training: p_l proportional to n_l^(1/T).

    It is the sampling of multilingual BERT and XLS-R (Babu et al. 2021, whose alpha is 1/T).

    Args:
        counts: language -> n_l, its utterances.
        temperature: T; 1 leaves the shares of the data, a large one makes them equal.

    Example:
        >>> shares = language_shares({"ca": 900, "mt": 100}, 2)
        >>> {language: round(share, 4) for language, share in shares.items()}
        {'ca': 0.75, 'mt': 0.25}
    """
    logs = np.log(np.array(list(counts.values()), np.float64)) / temperature
    weights = np.exp(logs - logs.max())
    return dict(zip(counts, (weights / weights.sum()).tolist(), strict=True))


def epoch_counts(counts: Mapping[str, int], temperature: float) -> dict[str, int]:
    """Return the rows of each language in an epoch, which together are as many as the data has.

    Args:
        counts: language -> its utterances.
        temperature: as in `language_shares`.
    """
    total = sum(counts.values())
    wanted = {name: total * p for name, p in language_shares(counts, temperature).items()}
    found = {name: int(size) for name, size in wanted.items()}
    # those that lose most by rounding down get the rest
    order = sorted(wanted, key=lambda name: found[name] - wanted[name])
    for name in order[: total - sum(found.values())]:
        found[name] += 1
    return found


class LanguageSampler(Sampler[int]):
    """Rows by a temperature over languages.

    An epoch has `epoch_counts` of each language. Rows of a language are taken in one random order after
    the other, in which the next epoch continues: none is repeated before all of its language were
    taken. The order depends on the seed and the epoch alone, so that a resumed run has the same one.

    Args:
        languages: of the rows.
        temperature: as in `language_shares`.
        seed: of the order.
    """

    def __init__(self, languages: Sequence[str], temperature: float, seed: int) -> None:
        self.rows: dict[str, list[int]] = {}
        for index, language in enumerate(languages):
            self.rows.setdefault(language, []).append(index)
        counts = {language: len(rows) for language, rows in self.rows.items()}
        self.counts = epoch_counts(counts, temperature)
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return sum(self.counts.values())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0 on, that is iterated over next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        parts = [self._of(number, language) for number, language in enumerate(self.rows)]
        order = np.random.default_rng([self.seed, 0, self.epoch]).permutation(np.concatenate(parts))
        yield from order.tolist()

    def _of(self, number: int, language: str) -> NDArray[np.int64]:
        """Return the rows of a language in this epoch; `number` is the language's."""
        rows, count = np.array(self.rows[language], np.int64), self.counts[language]
        begin = self.epoch * count
        passes = range(begin // len(rows), (begin + count - 1) // len(rows) + 1)
        orders = [
            np.random.default_rng([self.seed, 1, number, each]).permutation(rows) for each in passes
        ]
        taken = np.concatenate([*orders, rows[:0]])
        return taken[begin - passes.start * len(rows) :][:count]
