"""Make the batches of a training: features and labels, from audio that is read when needed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from lorsmerge_cli.data.audio import UnreadableAudio
from lorsmerge_cli.data.utterance import REMOVED, Drop, Utterance
from lorsmerge_cli.speech.kept import KeptFeatures
from lorsmerge_cli.speech.model import SpeechModel, audio_of
from lorsmerge_cli.speech.settings import TrainingSettings

IGNORED = -100  # label that cross_entropy ignores
ENGLISH_PROMPT = 2  # tokens of the prompt of a model that knows one language


class SpeechDataset(Dataset[dict[str, Any]]):
    """Utterances as features and labels, made when they are needed.

    If audio cannot be read, the item is silence without labels, which adds nothing to the loss, and has
    the reason under `drop`.

    Args:
        speech: the model.
        utterances: rows whose labels fit the model.
        settings: of the training, by which labels are made.
        removed: ids of utterances whose audio is not read.
        kept: where features are kept once they are made.
    """

    def __init__(
        self,
        speech: SpeechModel,
        utterances: Sequence[Utterance],
        settings: TrainingSettings | None = None,
        removed: Collection[str] = (),
        kept: KeptFeatures | None = None,
    ) -> None:
        self.kept = kept
        self.labels = [
            row_labels(speech, row, settings or TrainingSettings()) for row in utterances
        ]
        self.utterances = utterances
        self.removed = frozenset(removed)
        # worker processes may get a pickled copy, and need no weights
        self.speech = replace(speech, model=None)

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.utterances[index]
        if row.id in self.removed:
            return self._nothing(Drop(row.id, row.audio, REMOVED))
        found = self.kept.get(index) if self.kept else None
        if found is None:
            try:
                wave = audio_of(row)
            except UnreadableAudio as error:
                return self._nothing(Drop(row.id, row.audio, error.reason, error.what))
            found = self.speech.features([wave])[0], math.ceil(len(wave) / self._hop)
            if self.kept:
                self.kept.put(index, *found)
        return {"features": found[0], "frames": found[1], **self.labels[index]}

    def __getstate__(self) -> dict[str, Any]:
        """Return what a process that is not forked gets: it makes its own features."""
        return self.__dict__ | {"kept": None}

    def _nothing(self, drop: Drop) -> dict[str, Any]:
        features = self.speech.features([np.zeros(1, np.float32)])[0]
        return {"features": features, "frames": features.shape[1], "labels": [], "drop": drop}

    @property
    def _hop(self) -> int:
        return int(self.speech.processor.feature_extractor.hop_length)


def row_labels(speech: SpeechModel, row: Utterance, settings: TrainingSettings) -> dict[str, Any]:
    """Return the labels of a row, and what of its tokens is not learnt, for `collate`.

    A share of the rows has timestamps, and a share what was said before: which ones depends on the
    seed and the row's id alone, so that every epoch and a resumed run have the same.

    Args:
        speech: the model.
        row: of the training data.
        settings: of the training.
    """
    space = settings.label_space
    timed = _is_among(row, settings.timestamps, f"{settings.seed}:timestamps")
    item: dict[str, Any] = {"labels": speech.labels(row, space, timestamps=timed)}
    if settings.keep_language and len(speech.prompt(row.language, row.task)) > ENGLISH_PROMPT:
        item["given"] = 1
    if _is_among(row, settings.condition, f"{settings.seed}:condition"):
        room = speech.longest_label - len(item["labels"])
        item["context"] = speech.context(row, room, space, timestamps=timed)
    return item


def _is_among(row: Utterance, share: float | None, seed: str) -> bool:
    """Whether a row is among a share of all, chosen by a hash."""
    if share is None:
        return False
    digest = hashlib.blake2b(f"{seed}:{row.id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def collate(items: Sequence[Mapping[str, Any]], start: int, pad: int) -> dict[str, Any]:
    """Make a batch. Labels are padded by their length: Whisper's padding token also ends a text.

    Args:
        items: of a `SpeechDataset`; without `frames` there is no mask of the audio. `context` are
            tokens before the first one, and as many labels as `given` says are not learnt.
        start: first token of the decoder's input, which the labels follow.
        pad: token of the decoder's input after the end of a row.

    Returns:
        Tensors, and under `drops` each row's fault, or None.
    """
    longest = max(1, *(len(item.get("context", ())) + len(item["labels"]) for item in items))
    labels = torch.full((len(items), longest), IGNORED)
    inputs = torch.full((len(items), longest), pad)
    for row, item in enumerate(items):
        context, given = item.get("context", []), item.get("given", 0)
        tokens = torch.tensor([*context, start, *item["labels"]])
        first = len(context)
        inputs[row, 0] = start
        inputs[row, : len(tokens) - 1] = tokens[:-1]
        labels[row, first + given : len(tokens) - 1] = tokens[first + given + 1 :]
    features = torch.stack([item["features"] for item in items])
    batch = {"input_features": features, "decoder_input_ids": inputs, "labels": labels}
    if "frames" in items[0]:  # for SpecAugment alone, or most of what it masks is silence
        frames = torch.tensor([item["frames"] for item in items])
        batch["attention_mask"] = (torch.arange(features.shape[2]) < frames[:, None]).long()
    return batch | {"drops": [item.get("drop") for item in items]}
