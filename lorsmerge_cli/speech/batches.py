"""What a training step is fed with: features and labels, made from audio when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.speech.model import SpeechModel, audio_of

IGNORED = -100  # label of what does not count, as cross_entropy has it


class SpeechDataset(Dataset[dict[str, Any]]):
    """Utterances as features and labels, made when they are asked for.

    Args:
        speech: the model.
        utterances: whose labels fit it.
        space: as in `SpeechModel.labels`.
    """

    def __init__(
        self, speech: SpeechModel, utterances: Sequence[Utterance], space: str = "auto"
    ) -> None:
        self.labels = [speech.labels(row, space) for row in utterances]
        self.utterances = utterances
        # workers that are not forked get a copy of this, and need no weights
        self.speech = replace(speech, model=None)

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> dict[str, Any]:
        wave = audio_of(self.utterances[index])
        features = self.speech.features([wave])[0]
        hop = self.speech.processor.feature_extractor.hop_length
        return {
            "features": features,
            "frames": math.ceil(len(wave) / hop),
            "labels": self.labels[index],
        }


def collate(items: Sequence[Mapping[str, Any]], start: int, pad: int) -> dict[str, Tensor]:
    """A batch: labels are padded by their length, because Whisper's padding token ends a text too.

    Args:
        items: of a `SpeechDataset`; those without `frames` get no mask of their audio.
        start: token that the decoder begins with; labels follow it by one.
        pad: token where a row has ended.
    """
    longest = max(len(item["labels"]) for item in items)
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
    return batch
