"""Compute the cross-entropy of references under a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lorsmerge_cli.core.low_rank_sparse import accumulable
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.speech.batches import IGNORED, collate
from lorsmerge_cli.speech.features import Features
from lorsmerge_cli.speech.model import SpeechModel

BATCH = 16  # the logits of 50 tokens over Whisper's 51,865 take 10 MB an utterance


def token_losses(
    speech: SpeechModel, utterances: Sequence[Utterance], features: Features
) -> dict[str, tuple[float, int]]:
    """Return the teacher-forced cross-entropy of each text, given its prompt.

    Args:
        speech: the model, on its device.
        utterances: language and task determine the prompt of each, which is not scored.
        features: a cache of the audio's features.

    Returns:
        Utterance id -> sum over its tokens in nats, and their number with the end of the text.
    """
    found: dict[str, tuple[float, int]] = {}
    with torch.inference_mode():
        for rows, sums, counts in _losses(speech, utterances, features, BATCH):
            for row, total, count in zip(rows, sums.tolist(), counts.tolist(), strict=True):
                found[row.id] = (total, count)
    return found


def token_counts(speech: SpeechModel, utterances: Sequence[Utterance]) -> dict[str, int]:
    """Return the tokens that `token_losses` scores of each text, by utterance id."""
    return {
        row.id: len(speech.labels(row)[: speech.longest_label])
        - len(speech.prompt(row.language, row.task)) + 1
        for row in utterances
    }  # fmt: skip


def add_gradients(
    speech: SpeechModel,
    utterances: Sequence[Utterance],
    weights: Mapping[str, float],
    features: Features,
    batch_size: int,
) -> float:
    """Add the gradient of a weighted sum of texts' losses to the `grad` of the model's parameters.

    Args:
        speech: the model, on its device and in evaluation mode, so without dropout.
        utterances: as in `token_losses`, with the loss of each in nats.
        weights: of the losses, by utterance id.
        features: a cache of the audio's features.
        batch_size: utterances whose activations are in memory at a time.

    Returns:
        The weighted sum.
    """
    whole = 0.0
    for rows, sums, _ in _losses(speech, utterances, features, batch_size):
        factors = torch.tensor([weights[row.id] for row in rows], dtype=sums.dtype)
        loss = (sums * factors.to(sums.device)).sum()
        loss.backward()
        whole += loss.item()
    return whole


def _losses(
    speech: SpeechModel, utterances: Sequence[Utterance], features: Features, batch_size: int
) -> Iterator[tuple[Sequence[Utterance], Tensor, Tensor]]:
    """Yield rows, the longest texts first, the sum of each one's losses, and its tokens."""
    model = speech.model
    start, pad = model.config.decoder_start_token_id, speech.processor.tokenizer.eos_token_id
    # a text that is longer than a decoder sequence is scored up to that length
    labels = {row.id: speech.labels(row)[: speech.longest_label] for row in utterances}
    given = {row.id: len(speech.prompt(row.language, row.task)) - 1 for row in utterances}
    order = sorted(utterances, key=lambda row: (-len(labels[row.id]), row.id))
    wide = torch.float32 if model.device.type == "mps" else torch.float64
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        heard = features.of(rows)
        batch: dict[str, Any] = collate(
            [{"features": f, "labels": labels[row.id]} for f, row in zip(heard, rows, strict=True)],
            start,
            pad,
        )
        for number, row in enumerate(rows):
            batch["labels"][number, : given[row.id]] = IGNORED
        wanted = batch["labels"].to(model.device)
        logits = model(
            input_features=batch["input_features"].to(model.device, model.dtype),
            decoder_input_ids=batch["decoder_input_ids"].to(model.device),
            use_cache=False,
        ).logits
        loss = torch.nn.functional.cross_entropy(
            accumulable(logits.transpose(1, 2)), wanted, ignore_index=IGNORED, reduction="none"
        )
        yield rows, loss.to(wide).sum(1), (wanted != IGNORED).sum(1)
