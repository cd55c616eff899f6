"""Make the batches of a training: features and labels, from audio that is read when needed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from lorsmerge_cli.data.audio import UnreadableAudio
from lorsmerge_cli.data.utterance import REMOVED, Drop, Utterance
from lorsmerge_cli.speech.model import SpeechModel, audio_of

IGNORED = -100  # label that cross_entropy ignores


class SpeechDataset(Dataset[dict[str, Any]]):
    """Utterances as features and labels, made when they are needed.

    If audio cannot be read, the item is silence without labels, which adds nothing to the loss, and has
    the reason under `drop`.

    Args:
        speech: the model.
        utterances: rows whose labels fit the model.
        space: as in `SpeechModel.labels`.
        removed: ids of utterances whose audio is not read.
    """

    def __init__(
        self,
        speech: SpeechModel,
        utterances: Sequence[Utterance],
        space: str = "auto",
        removed: Collection[str] = (),
    ) -> None:
        self.labels = [speech.labels(row, space) for row in utterances]
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
        try:
            wave = audio_of(row)
        except UnreadableAudio as error:
            return self._nothing(Drop(row.id, row.audio, error.reason, error.what))
        return {
            "features": self.speech.features([wave])[0],
            "frames": math.ceil(len(wave) / self._hop),
            "labels": self.labels[index],
        }

    def _nothing(self, drop: Drop) -> dict[str, Any]:
        features = self.speech.features([np.zeros(1, np.float32)])[0]
        return {"features": features, "frames": features.shape[1], "labels": [], "drop": drop}

    @property
    def _hop(self) -> int:
        return int(self.speech.processor.feature_extractor.hop_length)


def collate(items: Sequence[Mapping[str, Any]], start: int, pad: int) -> dict[str, Any]:
    """Make a batch. Labels are padded by their length: Whisper's padding token also ends a text.

    Args:
        items: of a `SpeechDataset`; without `frames` there is no mask of the audio.
        start: first token of the decoder's input, which the labels follow.
        pad: token of the decoder's input after the end of a row.

    Returns:
        Tensors, and under `drops` each row's fault, or None.
    """
    longest = max(1, *(len(item["labels"]) for item in items))
    labels = torch.full((len(items), longest), IGNORED)
    inputs = torch.full((len(items), longest), pad)
    for row, item in enumerate(items):
        tokens = torch.tensor(item["labels"])
        labels[row, : len(tokens)] = tokens
        inputs[row, 0] = start
        inputs[row, 1 : len(tokens)] = tokens[:-1]
    features = torch.stack([item["features"] for item in items])
    batch = {"input_features": features, "decoder_input_ids": inputs, "labels": labels}
    if "frames" in items[0]:  # for SpecAugment alone, or most of what it masks is silence
        frames = torch.tensor([item["frames"] for item in items])
        batch["attention_mask"] = (torch.arange(features.shape[2]) < frames[:, None]).long()
    return batch | {"drops": [item.get("drop") for item in items]}
