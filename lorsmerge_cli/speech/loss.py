"""Compute the cross-entropy of references under a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

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
    model = speech.model
    start, pad = model.config.decoder_start_token_id, speech.processor.tokenizer.eos_token_id
    # a text that is longer than a decoder sequence is scored up to that length
    labels = {row.id: speech.labels(row)[: speech.longest_label] for row in utterances}
    given = {row.id: len(speech.prompt(row.language, row.task)) - 1 for row in utterances}
    order = sorted(utterances, key=lambda row: (-len(labels[row.id]), row.id))
    found: dict[str, tuple[float, int]] = {}
    for first in range(0, len(order), BATCH):
        rows = order[first : first + BATCH]
        heard = features.of(rows)
        batch: dict[str, Any] = collate(
            [{"features": f, "labels": labels[row.id]} for f, row in zip(heard, rows, strict=True)],
            start,
            pad,
        )
        for number, row in enumerate(rows):
            batch["labels"][number, : given[row.id]] = IGNORED
        wanted = batch["labels"].to(model.device)
        with torch.inference_mode():
            logits = model(
                input_features=batch["input_features"].to(model.device, model.dtype),
                decoder_input_ids=batch["decoder_input_ids"].to(model.device),
            ).logits
            loss = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2).float(), wanted, ignore_index=IGNORED, reduction="none"
            )
        sums, counts = loss.double().sum(1), (wanted != IGNORED).sum(1)
        for row, total, count in zip(rows, sums.tolist(), counts.tolist(), strict=True):
            found[row.id] = (total, count)
    return found
