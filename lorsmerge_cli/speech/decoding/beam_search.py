"""The search for the text of a clip: greedy, or by beams as transformers' `generate` ranks them.

The tokens are those of `generate` with a generation config of nothing but lists of suppressed tokens, where no two
hypotheses have the very same score. It is faster: a prompt is read once and not by every beam, beams share
their clip's cross-attention, and a clip whose text is found leaves the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorsmerge_cli.speech.decoding.stepper import Stepper
from lorsmerge_cli.speech.model import SpeechModel

NEVER = -1.0e9  # score of an empty place
# Clips leave when one in so many of the batch is done, as it copies the others' caches
LEAVING = 8


def search_clips(
    speech: SpeechModel,
    heard: Tensor,
    prompts: Tensor,
    *,
    beam: int,
    most: int,
    suppress: Sequence[int],
    begin_suppress: Sequence[int],
) -> Tensor:
    """Return the best text of each clip.

    Args:
        speech: the model, on its device.
        heard: [clips, positions, width], by `encode`.
        prompts: [clips, tokens].
        beam: hypotheses of a clip; with 1 the likeliest token is taken each time.
        most: tokens of a text, its end among them.
        suppress: tokens that are never said.
        begin_suppress: tokens that no text begins with.

    Returns:
        [clips, tokens] without prompts, padded with the end token.
    """
    end = int(speech.model.config.eos_token_id)
    never, not_first = speech.known(suppress), speech.known(begin_suppress)
    kind = _Beams if beam > 1 else _Greedy
    ranking = kind(len(heard), beam, most, end, heard.device)
    with torch.inference_mode():
        stepper = Stepper(speech, heard, prompts.tolist(), beam)
        _, logits = stepper.start([-1] * len(heard))
        while True:
            scores = ranking.scores_of(logits)
            scores[:, never] = -torch.inf
            if not ranking.length:
                scores[:, not_first] = -torch.inf
            tokens, sources = ranking.choose(scores)
            if ranking.length == most:
                break
            if (clips := ranking.leave()) is not None:
                if not len(clips):
                    break
                rows = _rows(clips, beam)
                tokens, sources = tokens[rows], sources[rows]
                stepper.keep(clips)
            if beam > 1 or clips is not None:
                stepper.reorder(sources)
            logits = stepper.step(tokens)
    return ranking.texts[:, : ranking.length]


def _rows(clips: Tensor, beam: int) -> Tensor:
    """Return the numbers of the hypotheses of some clips."""
    return (clips[:, None] * beam + torch.arange(beam, device=clips.device)).flatten()


class _Greedy:
    """The likeliest token each time.

    Attributes:
        texts: [clips, most], the best so far.
        length: tokens of a hypothesis.
        clips: numbers of those in the batch.
        open: which of them may still get a better text.
    """

    def __init__(self, clips: int, beam: int, most: int, end: int, device: torch.device) -> None:
        self.end, self.most, self.beam, self.length = end, most, beam, 0
        self.texts = torch.full((clips, most), end, device=device)
        self.clips = torch.arange(clips, device=device)
        self.open = torch.ones(clips, dtype=torch.bool, device=device)

    def scores_of(self, logits: Tensor) -> Tensor:
        """Return the scores that hypotheses are ranked by, of logits [hypotheses, vocabulary]."""
        return logits

    def choose(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next token of each hypothesis, and which one it continues."""
        tokens = scores.argmax(-1).where(self.open, torch.tensor(self.end, device=scores.device))
        self.texts[self.clips, self.length] = tokens
        self.open &= tokens != self.end
        self.length += 1
        return tokens, torch.arange(len(tokens), device=tokens.device)

    def leave(self) -> Tensor | None:
        """Return which clips of the batch stay; None if all do."""
        closed = len(self.open) - int(self.open.sum())
        if not closed or (LEAVING * closed < len(self.open)):
            return None
        kept = self.open.nonzero()[:, 0]
        self.keep(kept)
        return kept

    def keep(self, kept: Tensor) -> None:
        """Drop all clips of the batch but these."""
        self.clips, self.open = self.clips[kept], self.open[kept]


class _Beams(_Greedy):
    """Beam search of `generate` with length_penalty=1 and early_stopping=False.

    A finished text's score is the mean log-probability of its tokens, and a clip is done when it has as
    many as there are beams and the best running one has a mean below theirs.
    """

    def __init__(self, clips: int, beam: int, most: int, end: int, device: torch.device) -> None:
        super().__init__(clips, beam, most, end, device)
        self.running = torch.full((clips, beam), NEVER, device=device)
        self.running[:, 0] = 0  # of equal beams one counts
        self.finished = torch.full((clips, beam), NEVER, device=device)
        self.said = torch.empty(clips, beam, 0, dtype=torch.long, device=device)

    def scores_of(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(-1)

    def choose(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        vocabulary = scores.shape[1]
        sums = scores.view(len(self.clips), self.beam, vocabulary) + self.running[..., None]
        best, index = sums.flatten(1).topk(2 * self.beam)
        sources, tokens = index // vocabulary, index % vocabulary
        said = self.said.gather(1, sources[..., None].expand(-1, -1, self.length))
        said = torch.cat([said, tokens[..., None]], 2)
        self.length += 1
        ended = (tokens == self.end) | (self.length == self.most)
        self._finish(best, said, ended)
        self.running, order = torch.where(ended, best + NEVER, best).topk(self.beam)
        self.said = said.gather(1, order[..., None].expand(-1, -1, self.length))
        likely = self.running[:, 0] / self.length
        self.open &= (self.finished[:, -1] <= NEVER / 2) | (likely > self.finished[:, -1])
        sources = sources.gather(1, order)
        sources += self.beam * torch.arange(len(sources), device=sources.device)[:, None]
        return tokens.gather(1, order).flatten(), sources.flatten()

    def _finish(self, sums: Tensor, said: Tensor, ended: Tensor) -> None:
        """Add the hypotheses that just ended to their clip's finished texts, which stay sorted."""
        counted = ended[:, : self.beam] & self.open[:, None]
        means = (sums[:, : self.beam] / self.length).where(
            counted, torch.tensor(NEVER, device=sums.device)
        )
        mean, number = means.max(1)
        better = mean > self.finished[:, 0]
        text = said[torch.arange(len(said), device=said.device), number]
        self.texts[self.clips[better], : self.length] = text[better]
        self.finished = torch.cat([self.finished, means], 1).topk(self.beam)[0]

    def keep(self, kept: Tensor) -> None:
        super().keep(kept)
        self.running, self.finished = self.running[kept], self.finished[kept]
        self.said = self.said[kept]
