"""The rules by which timestamps are decoded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.speech.model import SpeechModel, Timestamps

LATEST_START = 1.0  # seconds into a window at which its first segment begins at the latest


def need_timestamps(speech: SpeechModel) -> Timestamps:
    """Return the timestamps of a model.

    Raises:
        UsageFault: its vocabulary has none.
    """
    if speech.timestamps is None:
        raise UsageFault(
            f"{speech.name} has no timestamps in its vocabulary.",
            "Give --no-timestamps: windows then follow each other, and each becomes one segment.",
        )
    return speech.timestamps


class Rules:
    """What may follow what: a mask over the vocabulary at each step (Radford et al. 2022, 4.5).

    Args:
        vocabulary: number of its tokens.
        end: the token that ends a text.
        suppress: tokens that never come.
        begin_suppress: tokens that do not come first.
        timestamps: to be decoded; None for a text without.
    """

    def __init__(
        self,
        vocabulary: int,
        end: int,
        suppress: Sequence[int],
        begin_suppress: Sequence[int],
        timestamps: Timestamps | None,
    ) -> None:
        self.timestamps = timestamps
        self.never, self.begin_suppress = [*suppress], [*begin_suppress]
        self._never = torch.zeros(vocabulary, dtype=torch.bool)
        self._never[list(suppress)] = True
        self._first = self._never.clone()
        self._first[list(begin_suppress)] = True
        self._timed = torch.zeros(vocabulary, dtype=torch.bool)
        if timestamps is not None:
            self._timed[timestamps.begin : timestamps.begin + timestamps.count] = True
            self._first |= ~self._timed
            self._first[timestamps.begin + round(LATEST_START / timestamps.step) + 1 :] = True
        self._text = ~self._timed
        self._text[end] = False

    def apply(self, logits: Tensor, said: Tensor) -> Tensor:
        """Return logits with -inf for what may not come.

        Args:
            logits: [hypotheses, vocabulary], float32.
            said: [hypotheses, tokens] after the prompt.
        """
        if self._never.device != logits.device:
            for name in ("_never", "_first", "_timed", "_text"):
                setattr(self, name, getattr(self, name).to(logits.device))
        banned = (self._never if said.shape[1] else self._first).expand(logits.shape)
        if self.timestamps is None:
            return logits.masked_fill(banned, -torch.inf)
        if said.shape[1]:
            banned = banned | self._by_order(said)
        logits = logits.masked_fill(banned, -torch.inf)
        # a time comes if all times together are likelier than any word
        scores = logits.log_softmax(-1)
        times = scores.masked_fill(~self._timed, -torch.inf).logsumexp(-1)
        words = scores.masked_fill(self._timed, -torch.inf).amax(-1)
        return logits.masked_fill((times > words)[:, None] & ~self._timed, -torch.inf)

    def _by_order(self, said: Tensor) -> Tensor:
        """Return what may not follow: times come in pairs, and none before the last."""
        assert self.timestamps is not None
        begin = self.timestamps.begin
        timed = self._timed[said]
        last = timed[:, -1]
        pair = timed[:, -2] if said.shape[1] > 1 else torch.ones_like(last)
        banned = (last & pair)[:, None] & self._timed | (last & ~pair)[:, None] & self._text
        # the end of a segment lies after its start; the start may be the end of the one before
        where = torch.arange(1, said.shape[1] + 1, device=said.device)
        latest = (timed * where).amax(-1)
        time = said.gather(1, (latest - 1).clamp(min=0)[:, None])[:, 0]
        floor = torch.where(latest > 0, torch.where(last & ~pair, time, time + 1), begin)
        numbers = torch.arange(banned.shape[1], device=said.device)
        return banned | self._timed & (numbers < floor[:, None])
